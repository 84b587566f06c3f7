"""An executor that tells a witness of everything that occupies a device, and changes nothing.

Works around any `Executor`; the fake one has a place for a witness of its own, because it knows
the steps of work that was interrupted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from engine.executors.fake import Witness
from engine.types import (
    Assignment,
    DeviceId,
    DeviceInfo,
    HandoffRef,
    NodeId,
    SavedLatent,
    StageKey,
    TaskId,
)

if TYPE_CHECKING:
    from engine.messages import StageReport
    from engine.ports import Clock, DeviceListener, Executor


class LiveWitness(Witness, Protocol):
    """Who is told of devices that come and go, besides what occupies them."""

    def device_ready(self, info: DeviceInfo) -> None:
        """A device came up, empty."""
        ...

    def device_lost(self, device: DeviceId) -> None:
        """A device went, with all it held."""
        ...


class WatchedExecutor:
    """Passes everything on to `inner`, and tells `witness` with the times of `clock`."""

    def __init__(self, inner: Executor, clock: Clock, witness: LiveWitness) -> None:
        """Watch from the start."""
        self._inner, self._clock, self._witness = inner, clock, witness
        self._saved: dict[TaskId, int] = {}  # the furthest step, by launch
        self._followed: dict[TaskId, bool] = {}  # whether what others follow has made its output

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        """Those of the executor."""
        return self._inner.devices

    @property
    def is_whole(self) -> bool:
        """Whether the executor's are all."""
        return self._inner.is_whole

    async def start(self, listener: DeviceListener) -> None:
        """Start it, with the witness listening first."""
        await self._inner.start(_WatchedListener(listener, self._witness, self._saved))

    async def load(self, device: DeviceId, stage: StageKey) -> float:
        """Tell of weights once they have arrived."""
        started_s = self._clock.now()
        load_s = await self._inner.load(device, stage)
        self._witness.loaded(device, stage, started_s)
        return load_s

    async def unload(self, device: DeviceId, stage: StageKey) -> None:
        """Tell of weights once they are gone."""
        await self._inner.unload(device, stage)
        self._witness.evicted(device, stage)

    async def run(self, assignment: Assignment) -> tuple[StageReport, ...]:
        """Tell of a launch once it has ended, whatever came of it, unless it never began."""
        started_s, first = self._clock.now(), assignment.task.steps_done
        if assignment.follows is not None:
            self._followed[assignment.follows] = False
        steps, outcome = (first, first), "failed"
        try:
            reports = await self._inner.run(assignment)
            if assignment.task.steps_left:
                steps = (first, max(report.steps_done for report in reports))
            outcome = "paused" if any(report.paused for report in reports) else "done"
            if assignment.task.id in self._followed:
                self._followed[assignment.task.id] = outcome == "done"
            return reports
        finally:
            saved = self._saved.pop(assignment.task.id, first)
            if outcome == "failed":
                steps = (first, saved)
            began = assignment.follows is None or self._followed.pop(assignment.follows)
            if began:
                self._witness.ran(assignment, started_s, steps, outcome)

    def pause(self, assignment: Assignment) -> None:
        """Pass it on."""
        self._inner.pause(assignment)

    def cancel(self, assignment: Assignment) -> None:
        """Pass it on."""
        self._inner.cancel(assignment)

    def drop(self, assignment: Assignment, task: TaskId) -> None:
        """Pass it on."""
        self._inner.drop(assignment, task)

    def restore(self, task: TaskId, node: NodeId, content: bytes) -> HandoffRef:
        """Pass it on."""
        return self._inner.restore(task, node, content)

    def release(self, ref: HandoffRef) -> None:
        """Pass it on."""
        self._inner.release(ref)

    def notices(self) -> tuple[str, ...]:
        """Pass it on."""
        return self._inner.notices()

    async def close(self) -> None:
        """Pass it on."""
        await self._inner.close()


class _WatchedListener:
    """Tells a witness of devices before their listener hears of them."""

    def __init__(
        self, inner: DeviceListener, witness: LiveWitness, saved: dict[TaskId, int]
    ) -> None:
        self._inner, self._witness, self._saved = inner, witness, saved

    def device_ready(self, info: DeviceInfo) -> None:
        self._witness.device_ready(info)
        self._inner.device_ready(info)

    def device_lost(self, device: DeviceId, reason: str) -> None:
        self._witness.device_lost(device)
        self._inner.device_lost(device, reason)

    def executor_failed(self, reason: str) -> None:
        self._inner.executor_failed(reason)

    def latent_saved(self, launch: TaskId, task: TaskId, saved: SavedLatent) -> None:
        self._saved[launch] = max(saved.step, self._saved.get(launch, 0))
        self._inner.latent_saved(launch, task, saved)

    def latent_shown(self, task: TaskId, index: int, latent: HandoffRef) -> None:
        self._inner.latent_shown(task, index, latent)

    def task_progressed(self, task: TaskId, step: int, steps: int) -> None:
        self._inner.task_progressed(task, step, steps)
