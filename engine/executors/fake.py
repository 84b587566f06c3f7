"""The executor's in-memory twin: stages take time by a formula and produce nothing.

With a virtual clock it is the simulator's executor; with faults injected it tests the core loop.
Denoise steps are boundaries here as on real workers: a diffuse reports each, and stops at one when
it is paused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from engine.errors import RequestCancelledError, StageFailedError, WorkerLostError
from engine.handoff import preview_of, saved_of
from engine.messages import Saving, StageReport
from engine.previews import preview_steps
from engine.types import (
    Artifact,
    Assignment,
    DeviceId,
    DeviceInfo,
    HandoffRef,
    NodeId,
    Purpose,
    SavedLatent,
    StageKey,
    StageKind,
    StageTask,
    TaskId,
)

if TYPE_CHECKING:
    from engine.ports import Clock, DeviceListener

HANDOFF_BYTES = 1 << 20


class Witness(Protocol):
    """Who is told of everything that occupies a device; times are the clock's seconds."""

    def ran(
        self, assignment: Assignment, started_s: float, steps: tuple[int, int], outcome: str
    ) -> None:
        """A launch ended now: `done`, `paused` or `failed`, having taken denoise steps from..to.

        Of a failed one that is as far as its steps were saved.
        """
        ...

    def loaded(self, device: DeviceId, stage: StageKey, started_s: float) -> None:
        """A stage's weights arrived now."""
        ...

    def evicted(self, device: DeviceId, stage: StageKey) -> None:
        """A stage's weights were freed now."""
        ...


class Work:
    """Something that takes time on devices until it is done, paused or interrupted.

    Boundaries are called back at `ends_s[i]`; the last one ends the work.
    """

    def __init__(
        self, team: Sequence[DeviceId], ends_s: Sequence[float], at_boundary: Callable[[int], None]
    ) -> None:
        """Begin now; `at_boundary` hears 1, 2, ... as the boundaries pass."""
        self.team = tuple(team)
        self.passed, self.pausing = 0, False
        self._ends_s, self._at_boundary = ends_s, at_boundary
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._timer = self._loop.call_at(ends_s[0], self._pass)

    def _pass(self) -> None:
        self.passed += 1
        self._at_boundary(self.passed)
        if self.passed == len(self._ends_s) or self.pausing:
            if not self.ended.done():
                self.ended.set_result(None)
        else:
            self._timer = self._loop.call_at(self._ends_s[self.passed], self._pass)

    def interrupt(self, error: Exception) -> None:
        """End it now with an error, unless it has ended."""
        self._timer.cancel()
        if not self.ended.done():
            self.ended.set_exception(error)

    async def wait(self) -> None:
        """Return at the end or at the boundary of a pause; raise what interrupted it."""
        try:
            await self.ended
        finally:
            self._timer.cancel()


class _Saves:
    """When a diffuse saves, and from which step it could be taken up again."""

    def __init__(self, saving: Saving | None, step: int, now_s: float) -> None:
        self._saving, self.step, self._at_s = saving, step, now_s

    def is_due(self, step: int, now_s: float) -> bool:
        """Whether to save after `step`; then that is where it stands."""
        due = self._saving is not None and self._saving.is_due(step - self.step, now_s - self._at_s)
        if due:
            self.step, self._at_s = step, now_s
        return due


class FakeExecutor:
    """Devices that exist only on the clock.

    Args:
        duration_s: what a launch takes for the steps it has left.
        lead_s: what passes before its first step: hand-off of inputs, forming the team.
        load_s: what loading a stage takes, from a peer on the node or from the host.
        restart_s: how long a killed device stays down.
        saving: how often diffuses save where they stand, which takes no time; None: never.

    Attributes:
        alive: hand-offs that were made and not yet released; empty when all work is done.
        launches: every task begun, with its first device and start time, in order.
    """

    def __init__(
        self,
        devices: Sequence[DeviceInfo],
        *,
        clock: Clock,
        duration_s: Callable[[Assignment], float],
        lead_s: Callable[[Assignment], float] = lambda _assignment: 0.0,
        load_s: Callable[[StageKey, bool], float] = lambda _stage, _from_peer: 0.0,
        restart_s: float = 1.0,
        saving: Saving | None = None,
        witness: Witness | None = None,
        keep_launches: bool = True,
    ) -> None:
        """Take the devices and how long stages and loads last on them."""
        self._infos = {info.id: info for info in devices}
        self._clock, self._duration_s, self._load_s = clock, duration_s, load_s
        self._lead_s, self._restart_s, self._witness = lead_s, restart_s, witness
        self._saving = saving
        self._listener: DeviceListener | None = None
        self._running: dict[str, Work] = {}
        self._made: dict[TaskId, asyncio.Future[bool]] = {}
        self._resident: dict[DeviceId, set[StageKey]] = {device: set() for device in self._infos}
        self._down: set[DeviceId] = set()
        self._restarts: set[asyncio.Task[None]] = set()
        self._keep_launches = keep_launches
        self.alive: dict[str, HandoffRef] = {}
        self.launches: list[tuple[TaskId, DeviceId, float]] = []

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        """Ids of all devices, dead ones included."""
        return tuple(self._infos)

    @property
    def is_whole(self) -> bool:
        """Always: they are all of this process."""
        return True

    @property
    def busy(self) -> int:
        """Devices that work now."""
        return sum(len(work.team) for work in self._running.values())

    async def start(self, listener: DeviceListener) -> None:
        """Report every device as ready at once."""
        self._listener = listener
        for info in self._infos.values():
            listener.device_ready(info)

    async def load(self, device: DeviceId, stage: StageKey) -> float:
        """Let the load time pass, unless the device is killed or the load cancelled meanwhile."""
        duration_s = self._load_s(stage, self._has_peer(device, stage))
        started_s = self._clock.now()
        name = f"load {stage} on {device}"
        work = self._begin(name, [device], [started_s + duration_s])
        try:
            await work.wait()
        finally:
            self._running.pop(name, None)
        self._resident[device].add(stage)
        if self._witness is not None:
            self._witness.loaded(device, stage, started_s)
        return duration_s

    def _has_peer(self, device: DeviceId, stage: StageKey) -> bool:
        node = self._infos[device].node
        return any(
            stage in held for other, held in self._resident.items()
            if other != device and self._infos[other].node == node
        )  # fmt: skip

    async def unload(self, device: DeviceId, stage: StageKey) -> None:
        """Unloading takes no time."""
        self._resident[device].discard(stage)
        if self._witness is not None:
            self._witness.evicted(device, stage)

    async def run(self, assignment: Assignment) -> tuple[StageReport, ...]:
        """Let the launch's time pass, after that of the launch it follows."""
        if assignment.follows is None and not assignment.then:
            return await self._run(assignment)
        made = self._made[assignment.task.id] = asyncio.get_running_loop().create_future()
        try:
            before = self._made.get(assignment.follows) if assignment.follows else None
            if assignment.follows and (before is None or not await asyncio.shield(before)):
                message = f"{assignment.follows} made no output for {assignment.task.id}."
                raise StageFailedError(message, retryable=True)
            reports = await self._run(assignment)
            made.set_result(not reports[0].paused)
            return reports
        finally:
            if not made.done():
                made.set_result(False)
            del self._made[assignment.task.id]

    async def _run(self, assignment: Assignment) -> tuple[StageReport, ...]:
        """Let the launch's time pass, unless a device is killed or the task cancelled or paused."""
        task, started_s = assignment.task, self._clock.now()
        if self._keep_launches:
            self.launches.append((task.id, assignment.team[0], started_s))
        lead_s, run_s = self._lead_s(assignment), self._duration_s(assignment)
        count = max(1, task.steps_left)
        ends_s = [started_s + lead_s + run_s * (i + 1) / count for i in range(count)]
        first, saves = task.steps_done, _Saves(self._saving, task.steps_done, started_s)

        def at_boundary(step: int) -> None:
            if task.steps_left:
                self._tell().task_progressed(task.id, first + step, task.request.steps)
                self._show(task, first + step)
                if step < count and saves.is_due(first + step, self._clock.now()):
                    self._save(assignment, first + step)

        work = self._begin(task.id, assignment.team, ends_s, at_boundary)
        outcome = "failed"
        try:
            await work.wait()
            outcome = "paused" if work.passed < count else "done"
        finally:
            self._running.pop(task.id, None)
            if self._witness is not None:
                reached = first + (work.passed if task.steps_left else 0)
                kept = saves.step if outcome == "failed" else reached
                self._witness.ran(assignment, started_s, (first, kept), outcome)
        spent_s = self._clock.now() - started_s - lead_s
        return tuple(
            self._report(t, lead_s, spent_s, first + work.passed) for t in assignment.tasks
        )

    def _show(self, task: StageTask, step: int) -> None:
        if step in (steps := preview_steps(task.request.previews, task.request.steps)):
            index = steps.index(step)
            self._tell().latent_shown(task.id, index, self._hand_off(preview_of(task.id, index)))

    def _save(self, assignment: Assignment, step: int) -> None:
        for task in assignment.tasks:
            latent = self._hand_off(saved_of(task.id, step))
            self._tell().latent_saved(assignment.task.id, task.id, SavedLatent(step, latent))

    def _begin(
        self,
        name: str,
        team: Sequence[DeviceId],
        ends_s: Sequence[float],
        at_boundary: Callable[[int], None] = lambda _step: None,
    ) -> Work:
        down = [device for device in team if device in self._down]
        if down:
            raise WorkerLostError(f"Device {down[0]} is down.")
        work = Work(team, ends_s, at_boundary)
        self._running[name] = work
        work.ended.add_done_callback(lambda _ended: self._running.pop(name, None))
        return work

    def _report(self, task: StageTask, lead_s: float, run_s: float, steps: int) -> StageReport:
        is_last = task.stage.kind is StageKind.DECODE and task.purpose is not Purpose.IMAGE_ENCODE
        is_diffuse = task.stage.kind is StageKind.DIFFUSE
        return StageReport(
            task=task.id,
            kind=task.stage.kind,
            receive_s=lead_s,
            run_s=run_s,
            send_s=0.0,
            peak_memory_bytes=0,
            steps_done=steps if is_diffuse else 0,
            paused=is_diffuse and steps < task.request.steps,
            output=None if is_last else self._hand_off(task.id),
            artifact=_empty_artifact(task) if is_last else None,
        )

    def _hand_off(self, name: TaskId) -> HandoffRef:
        ref = HandoffRef(NodeId(name), f"fake/{name}", HANDOFF_BYTES)
        self.alive[ref.path] = ref
        return ref

    def pause(self, assignment: Assignment) -> None:
        """Stop the diffuse at its next boundary."""
        if (work := self._running.get(assignment.task.id)) is not None:
            work.pausing = True

    def cancel(self, assignment: Assignment) -> None:
        """Interrupt the task at once."""
        if (work := self._running.get(assignment.task.id)) is not None:
            work.interrupt(RequestCancelledError(f"Task {assignment.task.id} was cancelled."))

    def drop(self, assignment: Assignment, task: TaskId) -> None:
        """Let it run along to the end: a batch takes as long without it."""

    def kill(self, device: DeviceId, *, for_good: bool = False) -> None:
        """Let a device's process die; it comes back after `restart_s`, unless it is for good."""
        self._down.add(device)
        self._resident[device].clear()
        for work in list(self._running.values()):
            if device in work.team:
                work.interrupt(WorkerLostError(f"Device {device} was killed."))
        if self._listener is not None:
            self._listener.device_lost(device, "killed")
        if not for_good:
            restart = asyncio.create_task(self._restart(device))
            self._restarts.add(restart)
            restart.add_done_callback(self._restarts.discard)

    async def _restart(self, device: DeviceId) -> None:
        await self._clock.sleep(self._restart_s)
        self._down.discard(device)
        self._tell().device_ready(self._infos[device])

    def _tell(self) -> DeviceListener:
        assert self._listener is not None  # nothing happens before start
        return self._listener

    def restore(self, task: TaskId, node: NodeId, content: bytes) -> HandoffRef:
        """Hold a hand-off of another executor's."""
        ref = self.alive[f"fake/{task}"] = HandoffRef(node, f"fake/{task}", len(content))
        return ref

    def release(self, ref: HandoffRef) -> None:
        """Forget a hand-off; raises KeyError if it was released before."""
        del self.alive[ref.path]

    def notices(self) -> tuple[str, ...]:
        """Return nothing."""
        return ()

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
