"""Where the requests of a simulation come from: a trace file or a workload, as often as needed.

Everything that can be wrong with a trace is found when the demand is made, before anything runs.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import msgspec

from engine.types import ModelId
from schedulers.errors import TraceError
from schedulers.sim.phases import GpuSeconds, Setting
from schedulers.sim.traces import TraceRow, measure, read_trace
from schedulers.sim.workloads import Workload


class Demand(Protocol):
    """Requests in order of arrival, each with its model; the same every time."""

    label: str
    rate_scale: float
    duration_s: float

    def rows(self) -> Iterator[TraceRow]:
        """Yield the requests from the first."""
        ...


class TraceDemand:
    """The requests of a CSV file.

    Args:
        models: what is served; a row without a model means the only one.
        rate_scale: arrivals come this many times as fast.
        steps: None means those of the file.
    """

    def __init__(
        self,
        path: Path,
        *,
        models: Sequence[str],
        rate_scale: float = 1.0,
        steps: int | None = None,
    ) -> None:
        """Read the file once.

        Raises:
            TraceError: the file is malformed, or asks for a model that is not served.
        """
        extent = measure(read_trace(path))
        self._path, self._steps, self._models = path, steps, tuple(models)
        self.label, self.rate_scale = path.name, rate_scale
        self.duration_s = extent.last_arrival_s / rate_scale
        for name in extent.models:
            self._need_served(name)

    def rows(self) -> Iterator[TraceRow]:
        """Yield the requests from the first, reading the file anew."""
        for row in read_trace(self._path):
            yield msgspec.structs.replace(
                row,
                arrival_s=row.arrival_s / self.rate_scale,
                model=row.model or ModelId(self._models[0]),
                steps=self._steps or row.steps,
            )

    def _need_served(self, model: str | None) -> None:
        served = ", ".join(self._models)
        if model is None and len(self._models) > 1:
            message = f"{self._path} has requests without a model, but {served} are served"
            raise TraceError(f"{message}; fill the column model.")
        if model is not None and model not in self._models:
            message = f"{self._path} asks for model {model!r}, but only {served} is served"
            raise TraceError(f"{message}; add --model {model}.")


class WorkloadDemand:
    """The requests of a workload; several models share the GPUs equally.

    Args:
        gpus: what the rate is reckoned for, not necessarily what is simulated.
    """

    def __init__(
        self,
        recipe: Workload,
        *,
        models: Sequence[str],
        gpus: int,
        gpu_seconds: GpuSeconds,
        seed: int = 0,
        rate_scale: float = 1.0,
        steps: int | None = None,
        duration_s: float | None = None,
    ) -> None:
        """Settle rate and duration.

        Raises:
            TraceError: no workload is defined for a model.
            ProfileError: a model's requests cannot be priced.
        """
        self._recipe, self.label, self.rate_scale = recipe, recipe.name, rate_scale
        self.duration_s = duration_s or recipe.duration_s
        self._settings = tuple(
            Setting(
                model=ModelId(model),
                gpus=gpus / len(models),
                gpu_seconds=gpu_seconds,
                turn=turn,
                seed=seed,
                rate_scale=rate_scale,
                steps=steps,
                duration_s=duration_s,
            )
            for turn, model in enumerate(models)
        )
        self.rate_rps = sum(recipe.rate_rps(setting) for setting in self._settings)

    @property
    def phase_ends_s(self) -> tuple[float, ...]:
        """Return when the phases of the workload end, those of the first model."""
        setting = self._settings[0]
        phases = self._recipe.phases(setting, self._recipe.steps(setting))
        return tuple(self.duration_s * end for end in accumulate(phase.share for phase in phases))

    def rows(self) -> Iterator[TraceRow]:
        """Yield the requests from the first, drawing them anew."""
        streams = (self._recipe.rows(setting) for setting in self._settings)
        return heapq.merge(*streams, key=lambda row: row.arrival_s)
