"""Makes stages resident: books memory, evicts, loads, and remembers what could not be loaded.

The caller holds the device's team, so at most one operation changes a device at a time; only a
prefetch works beside it, into memory that nobody else was promised.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from engine.errors import EngineError, StageFailedError, WorkerLostError
from engine.types import Assignment, DeviceId, StageKey, StageKind

if TYPE_CHECKING:
    from engine.cluster import Cluster
    from engine.ports import Clock, Executor
    from engine.residency import DeviceMemory

DEATHS_ALLOWED = 3  # of a worker while it loads one stage; then the stage is to blame
_PIPELINE_ORDER = tuple(StageKind)
log = structlog.get_logger(__name__)


class Loader:
    """Moves stages between folders and devices through the executor, ledger first."""

    def __init__(self, cluster: Cluster, executor: Executor, clock: Clock) -> None:
        """Know the ledgers and who can load."""
        self._cluster, self._executor, self._clock = cluster, executor, clock
        self._refused: dict[tuple[DeviceId, StageKey], str] = {}
        self._deaths: dict[tuple[DeviceId, StageKey], int] = {}
        self._filled: set[DeviceId] = set()
        self._arriving: dict[tuple[DeviceId, StageKey], asyncio.Future[None]] = {}

    async def prepare(self, assignment: Assignment) -> float:
        """Reserve a launch's memory on its team and load its stage; return the load seconds.

        All devices of the team load at once. If one fails, the others finish loading first.

        Raises:
            StageFailedError: the memory is not there, or the weights cannot be loaded.
            WorkerLostError: a device died.
        """
        if len(assignment.team) == 1:
            return await self._prepare(assignment.team[0], assignment)
        each = (self._prepare(device, assignment) for device in assignment.team)
        outcomes = await asyncio.gather(*each, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return max(outcome for outcome in outcomes if isinstance(outcome, float))

    async def _prepare(self, device: DeviceId, assignment: Assignment) -> float:
        task = assignment.task
        waited_s = await self._arrival(device, task.stage)
        memory = self._memory(device)
        if task.stage in memory.weights:
            await self._make_room(memory, assignment.activation_bytes, task.stage)
            memory.touch(task.stage)
            load_s = waited_s
        else:
            needed = self._cluster.weight_bytes[task.stage] + assignment.activation_bytes
            await self._make_room(memory, needed, task.stage)
            load_s = await self._load(memory, task.stage)
        memory.reserve(task.id, assignment.activation_bytes)
        return load_s

    async def _arrival(self, device: DeviceId, stage: StageKey) -> float:
        """Wait until a prefetch of a stage that is under way has ended; return the seconds."""
        arriving = self._arriving.get((device, stage))
        if arriving is None:
            return 0.0
        started_s = self._clock.now()
        await asyncio.shield(arriving)
        return self._clock.now() - started_s

    async def prefetch(self, device: DeviceId, stage: StageKey) -> None:
        """Load a stage into memory that is free, beside whatever the device runs.

        Evicts nothing and fails silently: the task that needs the stage will load it then.
        """
        memory = self._cluster.memories.get(device)
        if memory is None or stage in memory.weights:
            return
        if self._cluster.weight_bytes[stage] > memory.free_bytes:
            return
        arriving: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arriving[device, stage] = arriving
        try:
            with suppress(WorkerLostError, StageFailedError):
                await self._load(memory, stage)
        finally:
            del self._arriving[device, stage]
            arriving.set_result(None)

    def settle(self, assignment: Assignment) -> None:
        """Give back a task's activation memory."""
        for device in assignment.team:
            if device in self._cluster.memories:
                self._cluster.memories[device].settle(assignment.task.id)

    async def relieve(self, assignment: Assignment, error: EngineError) -> None:
        """After a failure that may be for want of memory, clear the device for the next try."""
        if not isinstance(error, StageFailedError) or not error.retryable:
            return
        for device in assignment.team:
            with suppress(WorkerLostError, StageFailedError):
                memory = self._memory(device)
                for stage in [s for s in memory.weights if s != assignment.task.stage]:
                    await self._executor.unload(device, stage)
                    memory.evict(stage)

    async def preload(self, device: DeviceId) -> None:
        """Load the first stage that placement wants on an idle device and that fits."""
        missing = self._missing(device)
        if not missing:
            return
        stage = min(missing, key=lambda stage: (_PIPELINE_ORDER.index(stage.kind), stage.model))
        try:
            await self._load(self._memory(device), stage)
        except WorkerLostError:
            return
        except StageFailedError as error:
            log.error("preload_failed", stage=str(stage), detail=str(error))  # noqa: TRY400 - the worker logged the traceback
        if not self._missing(device):
            self._filled.add(device)

    def unfilled(self) -> tuple[DeviceId, ...]:
        """Return live devices that lack stages of the current placement which would fit.

        A device is filled once per placement; what is swapped out later comes back on demand.
        """
        memories = self._cluster.memories
        lacking = [d for d in memories if d not in self._filled and self._missing(d)]
        self._filled |= {d for d in memories if d not in lacking}
        return tuple(lacking)

    def restarted(self, device: DeviceId) -> None:
        """Forget what a device held before its worker was restarted."""
        self._filled.discard(device)
        self._refused = {key: why for key, why in self._refused.items() if key[0] != device}

    def start_over(self) -> None:
        """Forget everything about the old placement."""
        self._filled.clear()
        self._refused.clear()
        self._deaths.clear()

    def _missing(self, device: DeviceId) -> frozenset[StageKey]:
        """Return desired stages that a device lacks, that fit and that may be loaded."""
        memory = self._cluster.memories.get(device)
        if memory is None:
            return frozenset()
        return frozenset(
            stage
            for stage in self._cluster.desired(device)
            if stage not in memory.weights
            and self._why_refused(device, stage) is None
            and self._cluster.weight_bytes[stage] <= memory.free_bytes
        )

    def _why_refused(self, device: DeviceId, stage: StageKey) -> str | None:
        deaths = self._deaths.get((device, stage), 0)
        if deaths >= DEATHS_ALLOWED:
            return f"The worker of {device} died {deaths} times while it loaded {stage}."
        return self._refused.get((device, stage))

    def why_not_servable(self, stage: StageKey) -> tuple[str, ...]:
        """Return why no live device could run `stage` now; empty if one could."""
        if any(stage in memory.loaded for memory in self._cluster.memories.values()):
            return ()
        placed = self._cluster.placement.stages
        planned = [device for device, stages in placed.items() if stage in stages]
        live = [device for device in planned if device in self._cluster.memories]
        if not live:
            return (f"{stage}: no live device has a place for it (of {len(planned)} planned).",)
        refusals = [why for d in live if (why := self._why_refused(d, stage)) is not None]
        if refusals:
            return (f"{stage}: {refusals[0]}",)
        if all(device in self._filled for device in live):
            return ()  # others fill the memory: it is loaded on demand
        return (f"{stage}: weights are being loaded on {', '.join(live)}.",)

    def _memory(self, device: DeviceId) -> DeviceMemory:
        try:
            return self._cluster.memories[device]
        except KeyError:
            message = f"Device {device} died before the stage could start."
            raise WorkerLostError(message) from None

    async def _make_room(self, memory: DeviceMemory, needed: int, keep: StageKey) -> None:
        evictions = memory.make_room(needed, keep, self._cluster.desired(memory.info.id))
        if evictions is None:
            message = f"{memory.info.id} cannot make room for {needed} bytes to run {keep}."
            raise StageFailedError(message, retryable=True)
        for stage in evictions:
            await self._executor.unload(memory.info.id, stage)
            memory.evict(stage)

    async def _load(self, memory: DeviceMemory, stage: StageKey) -> float:
        device = memory.info.id
        if self._deaths.get((device, stage), 0) >= DEATHS_ALLOWED:
            raise StageFailedError(self._why_refused(device, stage) or "", retryable=False)
        memory.admit(stage, self._cluster.weight_bytes[stage])
        try:
            load_s = await self._executor.load(device, stage)
        except StageFailedError as error:
            memory.evict(stage)
            self._refused[device, stage] = str(error)
            raise
        except WorkerLostError:
            self._deaths[device, stage] = self._deaths.get((device, stage), 0) + 1
            raise
        memory.loaded.add(stage)
        self._refused.pop((device, stage), None)
        self._deaths.pop((device, stage), None)
        log.info("stage_loaded", device=device, stage=str(stage), load_s=round(load_s, 3))
        return load_s
