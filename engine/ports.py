"""What the core loop needs from the world, as protocols.

Each port has a real adapter and an in-memory twin: `Executor` (executors.local / executors.fake),
`Clock` (clock.SystemClock / schedulers.sim.clock.VirtualClock), `Dispatcher` and `Planner`
(schedulers), `TensorTransport` (stages.transport / the dictionary twin in tests).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from engine.messages import StageReport
    from engine.types import (
        Assignment,
        ClusterView,
        DeviceId,
        DeviceInfo,
        DispatchPlan,
        HandoffRef,
        NodeId,
        Placement,
        SavedLatent,
        StageKey,
        StageTask,
        TaskId,
    )
    from observability.snapshot import MonitorSnapshot


class Clock(Protocol):
    """Time for all engine logic: Unix seconds that never step back."""

    def now(self) -> float:
        """Return the current time in seconds since the Unix epoch."""
        ...

    async def sleep(self, duration_s: float) -> None:
        """Return after `duration_s` seconds of this clock."""
        ...


class Dispatcher(Protocol):
    """Chooses a team for each ready task. No IO, no clock of its own."""

    def plan(self, ready: Sequence[StageTask], view: ClusterView) -> DispatchPlan:
        """Place some of `ready` on idle devices of `view`, and say why the rest waits."""
        ...

    def why_impossible(self, task: StageTask, view: ClusterView) -> str | None:
        """Return why this deployment can never run a task, or None; changes nothing."""
        ...

    def observe(self, assignment: Assignment, report: StageReport) -> None:
        """Learn from a finished stage."""
        ...


class Planner(Protocol):
    """Chooses which stages each device should hold. Pure."""

    def place(self, view: ClusterView, snapshot: MonitorSnapshot | None) -> Placement | None:
        """Return a new placement, or None to keep the current one."""
        ...


class DeviceListener(Protocol):
    """What an executor tells the core, on the core's event loop."""

    def device_ready(self, info: DeviceInfo) -> None:
        """A worker process is up and holds no weights."""
        ...

    def device_lost(self, device: DeviceId, reason: str) -> None:
        """A worker process died; everything it held is gone."""
        ...

    def executor_failed(self, reason: str) -> None:
        """The executor itself broke; nothing will run any more."""
        ...

    def latent_saved(self, launch: TaskId, task: TaskId, saved: SavedLatent) -> None:
        """The diffuse `task` of a launch goes on, and could be taken up again from `saved`."""
        ...

    def task_progressed(self, task: TaskId, step: int, steps: int) -> None:
        """The launch of `task` finished denoise step `step` of `steps`."""
        ...

    def latent_shown(self, task: TaskId, index: int, latent: HandoffRef) -> None:
        """The launch of `task` left a predicted clean latent: its preview number `index`."""
        ...


class Executor(Protocol):
    """Runs stages on devices.

    Every method that waits raises `WorkerLostError` if the device's process dies meanwhile, and
    `StageFailedError` if the worker lives but could not do it. `run` raises `HandoffLostError` if an
    input went with the node that held it.
    """

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        """Ids of all devices that are known, whether their workers are up or not."""
        ...

    @property
    def is_whole(self) -> bool:
        """Whether all devices are known; not while a node was never reached."""
        ...

    async def start(self, listener: DeviceListener) -> None:
        """Start the workers; each reports itself through `listener` when it is up."""
        ...

    async def load(self, device: DeviceId, stage: StageKey) -> float:
        """Load a stage's weights on a device, beside what runs there; return the seconds it took.

        Cancelling the waiting task stops the load between two chunks; it ends when what had
        arrived is freed.
        """
        ...

    async def unload(self, device: DeviceId, stage: StageKey) -> None:
        """Free a stage's weights on a device, beside what runs there."""
        ...

    async def run(self, assignment: Assignment) -> tuple[StageReport, ...]:
        """Run a launch on its team and return a report for each of its tasks, in their order."""
        ...

    def pause(self, assignment: Assignment) -> None:
        """Ask a diffuse to stop at its next step boundary and keep its latent.

        `run` then returns a report that says `paused`, or a finished one if it was too late.
        """
        ...

    def cancel(self, assignment: Assignment) -> None:
        """Ask the team to stop at the next step boundary; `run` then raises or returns."""
        ...

    def drop(self, assignment: Assignment, task: TaskId) -> None:
        """Ask the team to go on without one of a launch's tasks from the next step boundary on.

        Its report then says `cancelled`, or it is finished if it was too late.
        """
        ...

    def restore(self, task: TaskId, node: NodeId, content: bytes) -> HandoffRef:
        """Make a hand-off of what another executor's `node` left; `task` names it here."""
        ...

    def release(self, ref: HandoffRef) -> None:
        """Free the shared memory of a hand-off that nobody needs any more."""
        ...

    def notices(self) -> tuple[str, ...]:
        """Return what an operator should know of devices that are not there."""
        ...

    async def close(self) -> None:
        """Stop all workers and free everything; idempotent."""
        ...


class TensorTransport(Protocol):
    """Moves named tensors from one stage to the next. Values are torch tensors in workers.

    Within a process the tensors themselves, within a node a file in shared memory, between nodes
    its bytes over TCP: who puts and who gets need not know which.
    """

    def put(self, node: NodeId, task: TaskId, tensors: Mapping[str, Any]) -> HandoffRef:
        """Store tensors where the next stage can reach them."""
        ...

    def get(self, ref: HandoffRef, fields: Collection[str] | None = None) -> dict[str, Any]:
        """Return the stored tensors, or some; raises `StageFailedError` if they cannot be had."""
        ...
