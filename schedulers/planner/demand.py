"""Demand: how many requests of each class come per second, as a pure value.

It comes from the requests in the monitor's window or, before anything was seen, from a prior. It
knows nothing of costs or devices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from engine.types import ModelId, Shape
from observability.snapshot import MonitorSnapshot


class ClassDemand(msgspec.Struct, frozen=True, order=True):
    """Requests per second of one model at one shape, with the steps such requests have."""

    model: ModelId
    shape: Shape
    steps: int
    rate_per_s: float


class Demand(msgspec.Struct, frozen=True):
    """All classes, sorted, each model and shape once.

    `is_relative` says that only the ratios of a model's rates mean something: the planner then scales
    each model's to its part of a target load. A class of rate 0 asks for nothing but must stay servable.
    """

    classes: tuple[ClassDemand, ...]
    is_relative: bool = False

    @property
    def rate_per_s(self) -> float:
        """Requests per second over all classes."""
        return sum(entry.rate_per_s for entry in self.classes)

    def scaled(self, factors: Mapping[ModelId, float]) -> Demand:
        """Return each model's rates times its factor (none is 0), no longer relative."""
        return Demand(
            tuple(
                msgspec.structs.replace(
                    entry, rate_per_s=entry.rate_per_s * factors.get(entry.model, 0.0)
                )
                for entry in self.classes
            )
        )

    def silenced(self) -> Demand:
        """Return the same classes at rate 0."""
        return self.scaled({})


def uniform(
    shapes: Mapping[ModelId, Sequence[Shape]],
    steps: Mapping[ModelId, int],
    rate_per_s: float | None = None,
) -> Demand:
    """Return an even mix of all shapes of all models; relative if the rate is not known."""
    pairs = [(model, shape) for model, sizes in shapes.items() for shape in sizes]
    each = (1.0 if rate_per_s is None else rate_per_s) / max(1, len(pairs))
    return Demand(
        tuple(sorted(ClassDemand(m, shape, steps[m], each) for m, shape in pairs)),
        is_relative=rate_per_s is None,
    )


def merged(*demands: Demand) -> Demand:
    """Return one demand with every class of all; of a class that is in several, the first."""
    found: dict[tuple[ModelId, Shape], ClassDemand] = {}
    for demand in demands:
        for entry in demand.classes:
            found.setdefault((entry.model, entry.shape), entry)
    relative = bool(demands) and demands[0].is_relative
    return Demand(tuple(sorted(found.values())), is_relative=relative)


class Observation(msgspec.Struct, frozen=True):
    """What a window has shown: the demand, and how many requests that rests on."""

    demand: Demand
    requests: int


def observed(
    snapshot: MonitorSnapshot, *, elapsed_s: float, known: Demand, steps: Mapping[ModelId, int]
) -> Observation:
    """Read the request rate of each class from a window.

    Args:
        snapshot: the window; its own rates assume that it is full.
        elapsed_s: how long anybody has listened; a young window is divided by this.
        known: where the steps of a class come from if the window does not tell.
        steps: steps of classes that are not in `known`; models that are not here are ignored.
    """
    seconds = max(1e-9, min(snapshot.window_s, elapsed_s))
    by_class = {(entry.model, entry.shape): entry.steps for entry in known.classes}
    classes, requests = [], 0
    for key, asked in snapshot.asked.items():
        model, shape = ModelId(key.model), shape_of(key.shape)
        if shape is not None and model in steps:
            requests += asked.outputs
            usual = by_class.get((model, shape), steps[model])
            each = round(asked.mean_steps) or usual
            classes.append(ClassDemand(model, shape, each, asked.outputs / seconds))
    return Observation(Demand(tuple(sorted(classes))), requests)


def blended(seen: Observation, known: Demand, min_requests: int) -> Demand:
    """Return what was seen, its mix drawn towards `known` as far as the sample is small."""
    trust = min(1.0, seen.requests / max(1, min_requests))
    total, before = seen.demand.rate_per_s, known.rate_per_s
    if trust >= 1.0 or before <= 0.0:
        return seen.demand
    rates = {
        (entry.model, entry.shape): (entry, (1.0 - trust) * total * entry.rate_per_s / before)
        for entry in known.classes
    }
    for entry in seen.demand.classes:
        _, rate = rates.get((entry.model, entry.shape), (entry, 0.0))
        rates[entry.model, entry.shape] = (entry, rate + trust * entry.rate_per_s)
    return Demand(
        tuple(
            sorted(
                msgspec.structs.replace(entry, rate_per_s=rate) for entry, rate in rates.values()
            )
        )
    )


def shape_of(text: str) -> Shape | None:
    """Return the shape that `str(shape)` wrote, or None if it is none."""
    parts = text.split("x")
    if len(parts) not in (2, 3) or not all(part.isdecimal() for part in parts):
        return None
    return Shape(*(int(part) for part in parts))
