"""Makes stages resident: books memory, evicts, loads, and remembers what could not be loaded.

The caller holds the device's team, so at most one operation changes a device at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import structlog

from engine.errors import StageFailedError, WorkerLostError
from engine.types import Assignment, DeviceId, StageKey, StageKind

if TYPE_CHECKING:
    from engine.cluster import Cluster
    from engine.ports import Executor
    from engine.residency import DeviceMemory

_PIPELINE_ORDER = tuple(StageKind)
log = structlog.get_logger(__name__)


class Loader:
    """Moves stages between folders and devices through the executor, ledger first."""

    def __init__(self, cluster: Cluster, executor: Executor) -> None:
        """Know the ledgers and who can load."""
        self._cluster = cluster
        self._executor = executor
        self._refused: dict[tuple[DeviceId, StageKey], str] = {}
        self._filled: set[DeviceId] = set()

    async def prepare(self, assignment: Assignment) -> float:
        """Reserve a task's memory on its device and load its stage; return the load seconds.

        Raises:
            StageFailedError: the memory is not there, or the weights cannot be loaded.
            WorkerLostError: the device died.
        """
        task, device = assignment.task, assignment.team[0]
        memory = self._memory(device)
        if task.stage in memory.weights:
            await self._make_room(memory, assignment.activation_bytes, task.stage)
            memory.touch(task.stage)
            load_s = 0.0
        else:
            needed = self._cluster.weight_bytes[task.stage] + assignment.activation_bytes
            await self._make_room(memory, needed, task.stage)
            load_s = await self._load(memory, task.stage)
        memory.reserve(task.id, assignment.activation_bytes)
        return load_s

    def settle(self, assignment: Assignment) -> None:
        """Give back a task's activation memory."""
        for device in assignment.team:
            if device in self._cluster.memories:
                self._cluster.memories[device].settle(assignment.task.id)

    async def preload(self, device: DeviceId) -> None:
        """Load the stages that placement wants on an idle device, as far as they fit."""
        while missing := self._missing(device):
            stage = min(missing, key=lambda stage: (_PIPELINE_ORDER.index(stage.kind), stage.model))
            try:
                await self._load(self._memory(device), stage)
            except WorkerLostError:
                return
            except StageFailedError as error:
                log.error("preload_failed", stage=str(stage), detail=str(error))  # noqa: TRY400 - the worker logged the traceback
        self._filled.add(device)

    def wants_preload(self, device: DeviceId) -> bool:
        """Whether a live device has not yet been filled for the current placement."""
        return device not in self._filled and bool(self._missing(device))

    def start_over(self, devices: Iterable[DeviceId]) -> None:
        """Forget what was preloaded or refused on devices that restarted or got a new placement."""
        fresh = set(devices)
        self._filled -= fresh
        self._refused = {key: why for key, why in self._refused.items() if key[0] not in fresh}

    def _missing(self, device: DeviceId) -> frozenset[StageKey]:
        """Return desired stages that a device lacks, that fit and that were not refused."""
        memory = self._cluster.memories.get(device)
        if memory is None:
            return frozenset()
        return frozenset(
            stage
            for stage in self._cluster.desired(device)
            if stage not in memory.weights
            and (device, stage) not in self._refused
            and self._cluster.weight_bytes[stage] <= memory.free_bytes
        )

    def why_not_servable(self, stage: StageKey) -> str | None:
        """Return why no live device could run `stage` now; None if one could."""
        placed = self._cluster.placement.stages
        holders = [device for device, stages in placed.items() if stage in stages]
        if any(stage in memory.loaded for memory in self._cluster.memories.values()):
            return None
        live = [device for device in holders if device in self._cluster.memories]
        if not live:
            return f"{stage}: no live device has a place for it (of {len(holders)} planned)."
        refused = [self._refused[d, stage] for d in live if (d, stage) in self._refused]
        if refused:
            return f"{stage}: {refused[0]}"
        if all(self._swaps_in(device, stage) for device in live):
            return None
        return f"{stage}: weights are being loaded on {', '.join(live)}."

    def _swaps_in(self, device: DeviceId, stage: StageKey) -> bool:
        """Whether a stage is not resident because others fill the memory: loaded on demand."""
        fits = self._cluster.weight_bytes[stage] <= self._cluster.memories[device].capacity_bytes
        return fits and device in self._filled

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
        memory.admit(stage, self._cluster.weight_bytes[stage])
        try:
            load_s = await self._executor.load(device, stage)
        except StageFailedError as error:
            memory.evict(stage)
            self._refused[device, stage] = str(error)
            raise
        memory.loaded.add(stage)
        log.info("stage_loaded", device=device, stage=str(stage), load_s=round(load_s, 3))
        return load_s
