"""The executor's in-memory twin: stages take time by a formula and produce nothing.

With a virtual clock it is the simulator's executor; with faults injected it tests the core loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from engine.errors import RequestCancelledError, WorkerLostError
from engine.messages import StageReport
from engine.types import (
    Artifact,
    Assignment,
    DeviceId,
    DeviceInfo,
    HandoffRef,
    StageKey,
    StageKind,
    StageTask,
    TaskId,
)

if TYPE_CHECKING:
    from engine.ports import Clock, DeviceListener

HANDOFF_BYTES = 1 << 20


class FakeExecutor:
    """Devices that exist only on the clock.

    Attributes:
        alive: hand-offs that were made and not yet released; empty when all work is done.
        launches: every task begun, with its device and start time, in order.
    """

    def __init__(
        self,
        devices: Sequence[DeviceInfo],
        *,
        clock: Clock,
        duration_s: Callable[[StageTask], float],
        load_s: Callable[[StageKey], float] = lambda _stage: 0.0,
        restart_s: float = 1.0,
    ) -> None:
        """Take the devices and how long stages and loads last on them."""
        self._infos = {info.id: info for info in devices}
        self._clock, self._duration_s, self._load_s = clock, duration_s, load_s
        self._restart_s = restart_s
        self._listener: DeviceListener | None = None
        self._running: dict[str, tuple[DeviceId, asyncio.Future[None]]] = {}
        self._down: set[DeviceId] = set()
        self._restarts: set[asyncio.Task[None]] = set()
        self.alive: dict[str, HandoffRef] = {}
        self.launches: list[tuple[TaskId, DeviceId, float]] = []

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        """Ids of all devices, dead ones included."""
        return tuple(self._infos)

    async def start(self, listener: DeviceListener) -> None:
        """Report every device as ready at once."""
        self._listener = listener
        for info in self._infos.values():
            listener.device_ready(info)

    async def load(self, device: DeviceId, stage: StageKey) -> float:
        """Let the load time pass, unless the device is killed meanwhile."""
        await self._spend(f"load {stage} on {device}", device, self._load_s(stage))
        return self._load_s(stage)

    async def unload(self, device: DeviceId, stage: StageKey) -> None:
        """Unloading takes no time."""

    async def run(self, assignment: Assignment) -> StageReport:
        """Let the stage's time pass, unless the device is killed or the task cancelled."""
        task, device = assignment.task, assignment.team[0]
        self.launches.append((task.id, device, self._clock.now()))
        duration_s = self._duration_s(task)
        await self._spend(task.id, device, duration_s)
        return self._report(task, duration_s)

    async def _spend(self, work: str, device: DeviceId, duration_s: float) -> None:
        """Wait for `duration_s`, or raise what `cancel` or `kill` interrupts the work with."""
        if device in self._down:
            raise WorkerLostError(f"Device {device} is down.")
        interrupted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running[work] = (device, interrupted)
        try:
            async with asyncio.timeout(duration_s):
                await interrupted
        except TimeoutError:
            return
        finally:
            del self._running[work]

    def _report(self, task: StageTask, duration_s: float) -> StageReport:
        is_last = task.stage.kind is StageKind.DECODE
        return StageReport(
            task=task.id,
            kind=task.stage.kind,
            receive_s=0.0,
            run_s=duration_s,
            send_s=0.0,
            peak_memory_bytes=0,
            output=None if is_last else self._hand_off(task),
            artifact=_empty_artifact(task) if is_last else None,
        )

    def _hand_off(self, task: StageTask) -> HandoffRef:
        ref = HandoffRef(task.node, f"fake/{task.id}", HANDOFF_BYTES)
        self.alive[ref.path] = ref
        return ref

    def cancel(self, assignment: Assignment) -> None:
        """Interrupt the task at once."""
        self._interrupt(
            assignment.task.id, RequestCancelledError(f"Task {assignment.task.id} was cancelled.")
        )

    def _interrupt(self, work: str, error: Exception) -> None:
        _device, interrupted = self._running.get(work, (None, None))
        if interrupted is not None and not interrupted.done():
            interrupted.set_exception(error)

    def kill(self, device: DeviceId) -> None:
        """Let a device die; it comes back, empty, after `restart_s`."""
        self._down.add(device)
        for work, (holder, _future) in list(self._running.items()):
            if holder == device:
                self._interrupt(work, WorkerLostError(f"Device {device} was killed."))
        if self._listener is not None:
            self._listener.device_lost(device, "killed")
        restart = asyncio.create_task(self._restart(device))
        self._restarts.add(restart)
        restart.add_done_callback(self._restarts.discard)

    async def _restart(self, device: DeviceId) -> None:
        await self._clock.sleep(self._restart_s)
        self._down.discard(device)
        if self._listener is not None:
            self._listener.device_ready(self._infos[device])

    def release(self, ref: HandoffRef) -> None:
        """Forget a hand-off; raises KeyError if it was released before."""
        del self.alive[ref.path]

    async def close(self) -> None:
        """Stop pending restarts."""
        for restart in self._restarts:
            restart.cancel()


def _empty_artifact(task: StageTask) -> Artifact:
    return Artifact(
        index=task.image_index,
        content=b"",
        media_type="image/png",
        shape=task.request.shape,
        seed=task.request.seed + task.image_index,
        sha256="",
    )
