"""Makes stages resident: books memory, evicts, loads, and remembers what could not be loaded.

Adjust-on-Dispatch: a new placement moves nothing. A stage is loaded when the first launch needs it
on a device, or before, beside whatever runs there: into free memory, or instead of stages that no
one wants. Every byte is booked before the first chunk moves, one decision per device at a time, so
that old and new weights together never exceed the device. What no launch waits for may be
superseded half-way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog

from engine.arrivals import Arrival
from engine.errors import EngineError, StageFailedError, WorkerLostError
from engine.shortfall import Shortfall
from engine.types import Assignment, DeviceId, StageKey, StageKind, TaskId

if TYPE_CHECKING:
    from engine.cluster import Cluster
    from engine.ports import Clock, Executor
    from engine.residency import DeviceMemory

_PIPELINE_ORDER = tuple(StageKind)
log = structlog.get_logger(__name__)


class Loader:
    """Moves stages between folders and devices through the executor, ledger first.

    Args:
        spawn: runs a load to its end beside everything else.
        changed: told whenever a load has ended.

    Attributes:
        shortfall: what the placement wants and devices lack.
    """

    def __init__(
        self,
        cluster: Cluster,
        executor: Executor,
        clock: Clock,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        changed: Callable[[], None],
    ) -> None:
        """Know the ledgers and who can load."""
        self._cluster, self._executor, self._clock = cluster, executor, clock
        self._spawn, self._changed = spawn, changed
        self.shortfall = Shortfall(cluster, clock)
        self._arrivals: dict[tuple[DeviceId, StageKey], Arrival] = {}
        self._gates: dict[DeviceId, asyncio.Lock] = {}

    async def prepare(self, assignment: Assignment) -> float:
        """Reserve a launch's memory on its team and load its stage; return the load seconds.

        All devices of the team load at once. If one fails, the others finish loading first.

        Raises:
            StageFailedError: the memory is not there, or the weights cannot be loaded.
            WorkerLostError: a device died.
            RequestCancelledError: the launch was abandoned.
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
        began_s = self._clock.now()
        arrivals = await self._book(device, assignment)
        if not arrivals:
            return 0.0
        waits = (arrival.wait(assignment.task.id) for arrival in arrivals)
        for outcome in await asyncio.gather(*waits, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        return self._clock.now() - began_s

    async def _book(self, device: DeviceId, assignment: Assignment) -> list[Arrival]:
        """Promise a launch its memory; return the loads that it has to wait for."""
        task, stages = assignment.task.id, assignment.stages
        async with self._gate(device):
            arrivals = await self._claim(device, assignment)
            try:
                memory = self._memory(device)
                missing = sorted(stages - memory.weights.keys())
                self.shortfall.expect_loadable(device, missing)
                weights = sum(self._cluster.weight_bytes[stage] for stage in missing)
                await self._make_room(memory, weights + assignment.peak_activation_bytes, stages)
            except (StageFailedError, WorkerLostError):
                for arrival in arrivals:
                    arrival.unclaim(task)
                raise
            for stage in missing:
                arrivals.append(self._begin(memory, stage))
                arrivals[-1].claim(task)
            for stage in stages:
                memory.touch(stage)
            memory.reserve(task, assignment.peak_activation_bytes, stages)
            return arrivals

    async def _claim(self, device: DeviceId, assignment: Assignment) -> list[Arrival]:
        """Claim the loads of a launch's stages that are under way; what stops is waited for."""
        while stopping := [a for a in self._under_way(device, assignment) if a.is_stopping]:
            await stopping[0].ended.wait()
        arrivals = self._under_way(device, assignment)
        for arrival in arrivals:
            arrival.claim(assignment.task.id)
        return arrivals

    def _under_way(self, device: DeviceId, assignment: Assignment) -> list[Arrival]:
        found = (self._arrivals.get((device, stage)) for stage in sorted(assignment.stages))
        return [arrival for arrival in found if arrival is not None]

    def hand_on(self, assignment: Assignment, heir: Assignment) -> None:
        """Let the launch that follows on the same team keep what it needs of the memory."""
        for device in assignment.team:
            if (memory := self._cluster.memories.get(device)) is not None:
                memory.settle(assignment.task.id)
                memory.reserve(heir.task.id, heir.peak_activation_bytes, heir.stages)

    def abandon(self, assignment: Assignment) -> None:
        """Let a launch that nobody wants any more stop waiting; its load goes on without it."""
        for arrival in list(self._arrivals.values()):
            arrival.abandon(assignment.task.id)

    async def prefetch(self, device: DeviceId, stage: StageKey) -> None:
        """Load a stage beside whatever the device runs.

        Takes free memory; what placement wants may also replace what it does not. Fails silently,
        since the task that needs the stage will load it then.
        """
        async with self._gate(device):
            memory = self._cluster.memories.get(device)
            if memory is None or stage in memory.weights:
                return
            refusals = self.shortfall.refusals
            if self.shortfall.why_not(device, stage) or refusals.is_dangerous(device, stage):
                return
            desired = self._cluster.desired(device)
            keep = desired if stage in desired else frozenset(memory.weights)
            evictions = memory.make_room(self._cluster.weight_bytes[stage], keep)
            if evictions is not None:
                with suppress(WorkerLostError, StageFailedError):
                    await self._evict(memory, evictions)
                    self._begin(memory, stage)

    def fill(self, device: DeviceId) -> None:
        """Start to load the first stage that placement wants on an idle device and that fits there.

        One that took the worker down before is loaded while nothing may run beside it.
        """
        missing = self.shortfall.stages(device)
        if missing and not self._gate(device).locked():
            stage = min(missing, key=lambda stage: (_PIPELINE_ORDER.index(stage.kind), stage.model))
            arrival = self._begin(self._memory(device), stage)
            if self.shortfall.refusals.is_dangerous(device, stage):
                arrival.alone = TaskId(f"load/{device}")
                self._cluster.teams.acquire(arrival.alone, (device,), self._clock.now())

    def _begin(self, memory: DeviceMemory, stage: StageKey) -> Arrival:
        """Book a stage's weights and start to load them."""
        memory.admit(stage, self._cluster.weight_bytes[stage])
        arrival = self._arrivals[memory.info.id, stage] = Arrival(memory.info.id, stage)
        arrival.carried_by(self._spawn(self._carry(memory, arrival)))
        return arrival

    async def _carry(self, memory: DeviceMemory, arrival: Arrival) -> None:
        """Load a stage whose memory is booked, and tell those who wait."""
        error: EngineError | None = None
        try:
            if arrival.is_stopping:
                memory.evict(arrival.stage)
            else:
                arrival.is_moving = True
                await self._load(memory, arrival.stage)
        except (WorkerLostError, StageFailedError) as failure:
            error = failure
        finally:
            del self._arrivals[arrival.device, arrival.stage]
            if arrival.alone is not None:
                self._cluster.teams.release(arrival.alone)
            arrival.end(error)
            self._changed()

    async def _load(self, memory: DeviceMemory, stage: StageKey) -> None:
        device = memory.info.id
        try:
            load_s = await self._executor.load(device, stage)
        except StageFailedError as error:
            memory.evict(stage)
            self.shortfall.refusals.failed(device, stage, str(error), self._clock.now())
            raise
        except WorkerLostError as error:
            if error.began:
                self.shortfall.refusals.died(device, stage, self._clock.now())
            raise
        except asyncio.CancelledError:  # superseded: the executor has freed what had arrived
            memory.evict(stage)
            log.info("load_superseded", device=device, stage=str(stage))
            raise
        memory.loaded.add(stage)
        self.shortfall.refusals.loaded(device, stage)
        log.info("stage_loaded", device=device, stage=str(stage), load_s=round(load_s, 3))

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
            async with self._gate(device):
                with suppress(WorkerLostError, StageFailedError):
                    memory = self._memory(device)
                    memory.settle(assignment.task.id)
                    idle = [s for s in memory.idle_stages() if s != assignment.task.stage]
                    await self._evict(memory, idle)

    def unfilled(self) -> tuple[DeviceId, ...]:
        """Return live devices to be filled that no load is on its way to."""
        return self.shortfall.devices({device for device, _stage in self._arrivals})

    def start_over(self) -> None:
        """Follow a new placement: forget the old one, and stop loads that only it wanted."""
        self.shortfall.start_over()
        for arrival in list(self._arrivals.values()):
            wanted = arrival.is_wanted or arrival.stage in self._cluster.desired(arrival.device)
            if not wanted and not arrival.is_stopping:
                arrival.stop()

    def _gate(self, device: DeviceId) -> asyncio.Lock:
        """Return the lock under which a device's memory is promised, one decision at a time."""
        return self._gates.setdefault(device, asyncio.Lock())

    def _memory(self, device: DeviceId) -> DeviceMemory:
        try:
            return self._cluster.memories[device]
        except KeyError:
            message = f"Device {device} died before the stage could start."
            raise WorkerLostError(message, began=False) from None

    async def _make_room(
        self, memory: DeviceMemory, needed: int, keep: frozenset[StageKey]
    ) -> None:
        """Free memory for a launch; loads that no launch waits for give way if they must."""
        desired = self._cluster.desired(memory.info.id)
        evictions = memory.make_room(needed, keep, desired)
        if evictions is None:
            await self._supersede(memory.info.id, keep)
            evictions = memory.make_room(needed, keep, desired)
        if evictions is None:
            names = ", ".join(map(str, sorted(keep)))
            message = f"{memory.info.id} cannot make room for {needed} bytes to run {names}."
            raise StageFailedError(message, retryable=True)
        await self._evict(memory, evictions)

    async def _supersede(self, device: DeviceId, keep: frozenset[StageKey]) -> None:
        idle = [
            arrival
            for (where, stage), arrival in self._arrivals.items()
            if where == device and stage not in keep and not arrival.is_wanted
        ]
        for arrival in idle:
            if not arrival.is_stopping:
                arrival.stop()
            await arrival.ended.wait()

    async def _evict(self, memory: DeviceMemory, stages: Sequence[StageKey]) -> None:
        for stage in stages:
            await self._executor.unload(memory.info.id, stage)
            memory.evict(stage)
        if self._cluster.memories.get(memory.info.id) is not memory:
            message = f"Device {memory.info.id} died while it made room."
            raise WorkerLostError(message)

    def check_integrity(self) -> None:
        """Raise `LedgerError` if something arrives that no memory was promised to."""
        for device, stage in self._arrivals:
            memory = self._cluster.memories.get(device)
            if memory is not None:
                memory.expect_booked(stage)
