"""The engines of other processes, as a gateway without one of its own sees them.

It reads the table of engines every few seconds and predicts with a cost model that believes what
theirs have learnt.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from schedulers.cost import CostModel, Learnt

if TYPE_CHECKING:
    from engine import GenerationRequest, ModelId, PipelineSpec
    from engine.ports import Clock
    from gateway.jobs.engines import EngineRegistry, EngineReport

_REFRESH_S: Final = 1.0
_NO_ENGINE: Final = "No engine process is running; start one with: trident serve --role engine"

_log = structlog.get_logger(__name__)


class RemoteEngines:
    """A `Catalogue` of what all engines on the database serve."""

    def __init__(self, registry: EngineRegistry, clock: Clock, *, silent_after_s: float) -> None:
        """Count an engine as dead that was not heard of for `silent_after_s` seconds."""
        self._registry = registry
        self._clock = clock
        self._silent_after_s = silent_after_s
        self._specs: dict[ModelId, PipelineSpec] = {}
        self._cost = CostModel(())
        self._alive: list[EngineReport] = []

    @property
    def specs(self) -> Mapping[ModelId, PipelineSpec]:
        """Models by the name that clients use; of two with one name, the one last heard of."""
        return self._specs

    @property
    def devices(self) -> int:
        """Devices of all engines that live; 0 if none does."""
        return sum(report.devices for report in self._alive)

    def latency_s(self, request: GenerationRequest) -> float:
        """Return what the engines' cost models expect on idle devices."""
        return self._cost.latency_s(request)

    def work_s(self, request: GenerationRequest) -> float:
        """Return the device-seconds that the engines' cost models expect."""
        return self._cost.work_s(request)

    def knows(self, request: GenerationRequest) -> bool:
        """Return whether the cost model has a profile, or has seen this model at this size."""
        return self._cost.knows(request)

    def readiness(self) -> tuple[str, ...]:
        """Return why no engine would run a request now; empty if one would."""
        if not self._alive:
            return (_NO_ENGINE,)
        if any(not report.reasons for report in self._alive):
            return ()
        return tuple(reason for report in self._alive for reason in report.reasons)

    def notices(self) -> tuple[str, ...]:
        """Return why some engine would not run a request while others do."""
        if self.readiness():
            return ()
        return tuple(reason for report in self._alive for reason in report.reasons)

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Keep up with the table for as long as the context lasts."""
        await self._refresh()
        task = asyncio.create_task(self._follow(), name="remote-engines")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH_S)
            try:
                await self._refresh()
            except Exception as error:  # noqa: BLE001 - the database may come back
                _log.warning("engines_not_read", reason=repr(error))

    async def _refresh(self) -> None:
        now_s = self._clock.now()
        reports = await self._registry.remembered(now_s=now_s)
        self._alive = [r for r in reports if r.devices and r.seen_s > now_s - self._silent_after_s]
        specs: dict[ModelId, PipelineSpec] = {}
        for spec in (spec for report in reports for spec in report.models):
            specs.setdefault(spec.id, spec)
        if specs != self._specs:
            self._specs, self._cost = specs, CostModel(tuple(specs.values()))
        for report in reversed(reports):
            self._cost.adopt(_lessons_of(report))


def _lessons_of(report: EngineReport) -> tuple[Learnt, ...]:
    """Return what an engine has learnt; nothing if it is of a version that says it otherwise."""
    try:
        return msgspec.json.decode(report.learnt, type=tuple[Learnt, ...])
    except msgspec.MsgspecError:
        return ()
