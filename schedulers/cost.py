"""The cost model: what stages, loads and hand-offs take, by profile or guess, corrected by reports.

Expectations come from `schedulers.expectations` and are kept, so that asking again is a dictionary
lookup. Durations are scaled per model, stage and shape by a bounded running mean of measured over
expected; activation bytes by the highest peak seen. Knows nothing of queues or placement.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import islice, product
from typing import TypeVar

import msgspec

from engine.graph import StageNode
from engine.messages import StageReport
from engine.pipelines import PipelineSpec, build
from engine.types import GenerationRequest, ModelId, Shape, StageKey, StageKind, StageTask
from schedulers.expectations import Expectation, ProfileTables, guess
from schedulers.profiles.schema import ModelProfile, Profile, Provenance

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")

EFFICIENT = 0.8  # least t1 / (k * t_k) at which k devices are worth it (TridentServe)
_WEIGHT_OF_NEWEST = 0.3
_GUESS_BOUNDS = (1e-3, 1e3)
_PROFILE_BOUNDS = (0.2, 5.0)
_MAX_CLASSES = 4096  # sizes are chosen by clients: without a bound a server would grow for ever
_MAX_KEPT = 1024
_NEXT = {StageKind.ENCODE: StageKind.DIFFUSE, StageKind.DIFFUSE: StageKind.DECODE}


class Estimate(msgspec.Struct, frozen=True):
    """What a task is expected to take.

    Attributes:
        measured: a report of its class (model, stage, shape) was seen and counts.
        provenance: of the figures that the expectation was made of.
        extrapolation: 1.0 inside the profiled sizes; 3.0 is three times the pixels of the largest,
            0.5 half those of the smallest.
    """

    duration_s: float
    activation_bytes: int
    measured: bool
    provenance: Provenance = Provenance.ASSUMED
    extrapolation: float = 1.0


class Learnt(msgspec.Struct, frozen=True):
    """What is known of one stage at one shape: its duration over what would be guessed of it.

    A process without the profile, or with another one, can so believe it.
    """

    stage: StageKey
    shape: Shape
    factor: float


class _Class:
    """Everything kept of one stage at one shape: expectations, answers, and what was learnt."""

    __slots__ = ("best_degree", "estimates", "expected", "factor", "min_degree", "peaks", "steps")

    def __init__(self) -> None:
        self.expected: dict[tuple[int, int], Expectation] = {}  # by degree and batch
        self.estimates: dict[tuple[int, int, int], Estimate] = {}  # by steps, degree and batch
        self.steps: dict[int, float] = {}  # seconds by degree
        self.peaks: dict[tuple[int, int], int] = {}  # bytes by degree and batch
        self.factor: float | None = None
        self.min_degree: int | None = None
        self.best_degree: int | None = None

    def forget_answers(self) -> None:
        self.estimates.clear()
        self.steps.clear()


class CostModel:
    """Expected durations, bytes and degrees of stage tasks.

    Without a profile every duration is a guess for one device, until reports correct it; loads,
    hand-offs and changes then count as free. So do models that the profile does not have.
    """

    def __init__(
        self, specs: Sequence[PipelineSpec], profile: Profile | None = None, *, learn: bool = True
    ) -> None:
        """Know the models' sizes, and their speed if there is a profile.

        With `learn` false, reports change nothing.
        """
        self._specs: dict[ModelId, PipelineSpec] = {spec.id: spec for spec in specs}
        self._diffuse = {spec.id: spec.stage(StageKind.DIFFUSE) for spec in specs}
        self._learn = learn
        self.begin_from(profile)

    def begin_from(self, profile: Profile | None) -> None:
        """Know what a profile says, and forget what was learnt before."""
        profiled = profile.models if profile else {}
        self._models: dict[ModelId, ModelProfile] = {
            ModelId(name): model for name, model in profiled.items() if name in self._specs
        }
        self._tables = ProfileTables(profile) if profile else None
        self._degrees = {
            name: tuple(k for k in model.degrees if k in self._specs[name].degrees) or (1,)
            for name, model in self._models.items()
        }
        self._classes: dict[tuple[StageKey, Shape], _Class] = {}
        self._references: dict[tuple[ModelId, Shape, int], float] = {}
        self.change_s = profile.node.change_s if profile else 0.0

    def estimate(
        self, stage: StageKey, request: GenerationRequest, *, degree: int = 1, batch: int = 1
    ) -> Estimate:
        """Return what `stage` of `request` should take on `degree` devices.

        The duration is of the whole stage, for `batch` requests of this shape together.
        """
        known = self._classes.get((stage, request.shape)) or self._open(stage, request.shape)
        key = (request.steps, degree, batch)
        found = known.estimates.get(key)
        if found is None:
            found = self._estimate(known, stage, request, degree, batch)
            keep(known.estimates, key, found)
        return found

    def stage(self, model: ModelId, kind: StageKind) -> StageKey:
        """Return the key of one of a model's stages."""
        return self._specs[model].stage(kind)

    def step_s(self, model: ModelId, shape: Shape, degree: int) -> float:
        """Return the seconds of one denoise step, corrections included."""
        stage = self._diffuse[model]
        known = self._classes.get((stage, shape)) or self._open(stage, shape)
        found = known.steps.get(degree)
        if found is None:
            found = self._expected(known, stage, shape, degree).step_s * _factor(known)
            keep(known.steps, degree, found)
        return found

    def observe(
        self, task: StageTask, report: StageReport, *, degree: int = 1, batch: int = 1
    ) -> None:
        """Learn from one execution; one outlier moves a factor by at most 30 % of the way.

        A guess is replaced by the first report, a profile only drawn towards it. The steps of an
        execution that stopped early are `report.steps_done`, counted from where it began.
        """
        if not self._learn:
            return
        stage, request = task.stage, task.request
        known = self._classes.get((stage, request.shape)) or self._open(stage, request.shape)
        steps = report.steps_done or request.steps
        expected_s = self._expected(known, stage, request.shape, degree, batch).duration_s(steps)
        profiled = stage.model in self._models
        low, high = _PROFILE_BOUNDS if profiled else _GUESS_BOUNDS
        bounded = min(high, max(low, report.run_s / expected_s))
        old = known.factor
        if old is None:
            old = 1.0 if profiled else bounded
        known.factor = old + _WEIGHT_OF_NEWEST * (bounded - old)
        if report.peak_memory_bytes:
            key = (degree, batch)
            known.peaks[key] = max(known.peaks.get(key, 0), report.peak_memory_bytes)
        known.forget_answers()

    def learnt(self, most: int = 256) -> tuple[Learnt, ...]:
        """Return what is known of up to `most` classes, to tell a model in another process."""
        for name, model in self._models.items():
            for stage, shape in product(self._specs[name].stages, model.shapes):
                if (stage, shape) not in self._classes:
                    self._open(stage, shape)
        known = (
            Learnt(stage, shape, _factor(found) * self._over_guess(found, stage, shape))
            for (stage, shape), found in reversed(self._classes.items())
            if found.factor is not None or stage.model in self._models
        )
        return tuple(islice(known, most))

    def _over_guess(self, known: _Class, stage: StageKey, shape: Shape) -> float:
        """Return what is expected of a class before corrections, over the guess of it."""
        if stage.model not in self._models:
            return 1.0
        spec = self._specs[stage.model]
        guessed_s = guess(spec, stage.kind, shape, 1).duration_s(spec.default_steps)
        return self._expected(known, stage, shape, 1).duration_s(spec.default_steps) / guessed_s

    def adopt(self, learnt: Sequence[Learnt]) -> None:
        """Believe what a model in another process has learnt; unknown models are left out."""
        for lesson in learnt:
            stage, shape = lesson.stage, lesson.shape
            if stage.model in self._specs:
                known = self._classes.get((stage, shape)) or self._open(stage, shape)
                known.factor = lesson.factor / self._over_guess(known, stage, shape)
                known.forget_answers()

    def work_s(self, request: GenerationRequest) -> float:
        """Return the device-seconds of a request: every stage's duration times its devices."""
        best = self.best_degree(request.model, request.shape)
        total = 0.0
        for node in build(self._specs[request.model], request).nodes.values():
            degree = best if node.stage.kind is StageKind.DIFFUSE else 1
            total += degree * self.estimate(node.stage, request, degree=degree).duration_s
        return total

    def knows(self, request: GenerationRequest) -> bool:
        """Return whether what a request takes was profiled or seen, and is not only a guess."""
        stages = self._specs[request.model].stages
        profiled = request.model in self._models
        return profiled or all(self.estimate(stage, request).measured for stage in stages)

    def degrees(self, model: ModelId) -> tuple[int, ...]:
        """Return the degrees that a model can run at and that were profiled, ascending."""
        return self._degrees.get(model, (1,))

    def decode_parts(self, model: ModelId, shape: Shape) -> int:
        """Return how many frames or tiles of a decode a team can share out; 1 if it is one piece."""
        return self._specs[model].decode_parts(shape)

    def min_degree(self, model: ModelId, shape: Shape) -> int:
        """Return the least degree at which memory holds a diffuse stage of this shape.

        Of a model that cannot be shared out so far, the largest that it can.
        """
        stage = self._diffuse[model]
        known = self._classes.get((stage, shape)) or self._open(stage, shape)
        if known.min_degree is None:
            profiled = self._models.get(model)
            least = profiled.min_degree(shape) if profiled else 1
            known.min_degree = min(least, self.degrees(model)[-1])
        return known.min_degree

    def best_degree(self, model: ModelId, shape: Shape) -> int:
        """Return the largest degree that is at least 0.8 efficient and that memory allows.

        The efficiency of k is t1 / (k * t_k) by the profile, not by what was learnt. Where memory
        forces a degree and none is efficient, the forced one is best.
        """
        stage = self._diffuse[model]
        known = self._classes.get((stage, shape)) or self._open(stage, shape)
        if known.best_degree is None:
            least = self.min_degree(model, shape)
            single_s = self._expected(known, stage, shape, 1).step_s
            efficient = (
                k
                for k in self.degrees(model)
                if k >= least
                and single_s >= EFFICIENT * k * self._expected(known, stage, shape, k).step_s
            )
            known.best_degree = max(efficient, default=least)
        return known.best_degree

    def reference_s(self, request: GenerationRequest) -> float:
        """Return encode, all steps at the best degree and decode, as profiled: an SLO's reference.

        Corrections do not count, so a deadline does not depend on what ran before.
        """
        key = (request.model, request.shape, request.steps)
        found = self._references.get(key)
        if found is None:
            found = self._reference_s(request)
            keep(self._references, key, found)
        return found

    def latency_s(self, request: GenerationRequest) -> float:
        """Return the critical path of a request on idle devices, by what was learnt so far.

        Diffuse runs at the best degree (1 without a profile), encode and decode on one device.
        """
        graph = build(self._specs[request.model], request)
        best = self.best_degree(request.model, request.shape)

        def duration_s(node: StageNode) -> float:
            degree = best if node.stage.kind is StageKind.DIFFUSE else 1
            return self.estimate(node.stage, request, degree=degree).duration_s

        return graph.critical_path(duration_s)

    def load_s(self, stage: StageKey, *, from_peer: bool) -> float:
        """Return the seconds to load a stage's weights from a peer of the node, or from its host."""
        model = self._models.get(stage.model)
        if model is None:
            return 0.0
        profiled = model.stages[stage.kind]
        return profiled.load_peer_s if from_peer else profiled.load_host_s

    def handoff_s(
        self, stage: StageKey, request: GenerationRequest, *, same_device: bool, same_node: bool
    ) -> float:
        """Return the seconds until the input of `stage` is where it runs; encode has no input."""
        model = self._models.get(request.model)
        if model is None or same_device or stage.kind is StageKind.ENCODE:
            return 0.0
        edge = model.edges[stage.kind]
        return edge.within_node_s if same_node else edge.across_node_s

    def handoff_bytes(self, stage: StageKey, request: GenerationRequest) -> int:
        """Return the bytes that `stage` hands to the next one; decode hands over none."""
        model = self._models.get(request.model)
        if model is None or stage.kind is StageKind.DECODE:
            return 0
        edge = model.edges[_NEXT[stage.kind]]
        return round(edge.fixed_bytes + edge.bytes_per_pixel * request.shape.pixels)

    def _reference_s(self, request: GenerationRequest) -> float:
        best = self.best_degree(request.model, request.shape)
        total = 0.0
        for stage in self._specs[request.model].stages:
            known = self._classes.get((stage, request.shape)) or self._open(stage, request.shape)
            degree = best if stage.kind is StageKind.DIFFUSE else 1
            expected = self._expected(known, stage, request.shape, degree)
            total += expected.duration_s(request.steps)
        return total

    def _estimate(
        self, known: _Class, stage: StageKey, request: GenerationRequest, degree: int, batch: int
    ) -> Estimate:
        expected = self._expected(known, stage, request.shape, degree, batch)
        return Estimate(
            duration_s=expected.duration_s(request.steps) * _factor(known),
            activation_bytes=known.peaks.get((degree, batch), expected.activation_bytes),
            measured=known.factor is not None,
            provenance=expected.provenance,
            extrapolation=expected.extrapolation,
        )

    def _expected(
        self, known: _Class, stage: StageKey, shape: Shape, degree: int, batch: int = 1
    ) -> Expectation:
        found = known.expected.get((degree, batch))
        if found is None:
            if self._tables is not None and stage.model in self._models:
                found = self._tables.expect(stage, shape, degree, batch)
            else:
                found = guess(self._specs[stage.model], stage.kind, shape, batch)
            if degree > 1 and stage.kind is StageKind.DECODE:
                found = _shared_out(found, self.decode_parts(stage.model, shape), degree)
            keep(known.expected, (degree, batch), found)
        return found

    def _open(self, stage: StageKey, shape: Shape) -> _Class:
        """Begin to keep a class; the oldest is forgotten when there are too many."""
        if len(self._classes) >= _MAX_CLASSES:
            del self._classes[next(iter(self._classes))]
        known = self._classes[stage, shape] = _Class()
        return known


def _shared_out(known: Expectation, parts: int, degree: int) -> Expectation:
    """Expect of a decode that its duration is that of the largest share of its frames or tiles.

    A degree that was profiled says so itself; beyond it, as much less as the largest share is.
    """
    share, known_share = (-(-parts // members) for members in (degree, known.degree))
    return msgspec.structs.replace(known, fixed_s=known.fixed_s * share / known_share)


def keep(kept: dict[_K, _V], key: _K, value: _V) -> None:
    """Keep an answer that can be found again; all are forgotten when there are too many."""
    if len(kept) >= _MAX_KEPT:
        kept.clear()
    kept[key] = value


def _factor(known: _Class) -> float:
    return 1.0 if known.factor is None else known.factor
