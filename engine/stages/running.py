"""Runs one launch of a worker: inputs in, stage, outputs out, and what it took.

Knows no socket: what the controller says meanwhile comes through `Orders`. In a team the leader
hears for all: at every boundary the members agree on what it has heard, and all do the same.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Protocol

import structlog
import torch

from engine.errors import NotFiniteError, StageFailedError
from engine.handoff import preview_of, saved_of
from engine.messages import (
    LaunchDone,
    RunStage,
    Saving,
    StageReport,
    TaskCancelled,
    TaskFailed,
    TeamBroke,
)
from engine.stages import team as teams
from engine.stages.base import CancelledAtStep, Job, Snapshot, Stage, StageResult
from engine.stages.denoise import LATENTS
from engine.stages.groups import Groups
from engine.stages.stopwatch import Stopwatch
from engine.stages.team import Team
from engine.stages.transport import FileTransport
from engine.types import HandoffRef, SavedLatent, StageKey, StageKind, StageTask, TaskId
from observability.logging import ids_of

_CPU_OUT_OF_MEMORY = "DefaultCPUAllocator"
log = structlog.get_logger(__name__)
Ending = LaunchDone | TaskFailed | TaskCancelled | TeamBroke


class Said(IntEnum):
    """What the controller wants of a launch, as far as was heard; the greater prevails."""

    NOTHING = 0
    PAUSE = 1
    CANCEL = 2


class Orders(Protocol):
    """What the controller tells a worker while a launch runs, and what it is told."""

    def report_step(self, launch: TaskId, step: int, steps: int) -> None:
        """Tell the controller of a denoise step."""
        ...

    def report_saved(self, launch: TaskId, task: TaskId, saved: SavedLatent) -> None:
        """Tell the controller where a task of a launch could be taken up again."""
        ...

    def report_latent(self, task: TaskId, index: int, latent: HandoffRef) -> None:
        """Tell the controller of the clean latent that a step predicts: preview `index`."""
        ...

    def hear(self, launch: TaskId, task: TaskId) -> Said:
        """Take in what has arrived, and return what it says of a launch, and of one task of it."""
        ...


class TaskRunner:
    """Runs launches on the stages that are loaded on one device."""

    def __init__(
        self,
        stages: Mapping[StageKey, Stage],
        transport: FileTransport,
        device: torch.device,
        groups: Groups,
        orders: Orders,
        *,
        saving: Saving | None = None,
    ) -> None:
        """Take the worker's loaded stages, which it goes on changing."""
        self._saving = saving
        self._stages, self._transport, self._groups = stages, transport, groups
        self._device, self._orders = device, orders
        self._made: TaskId | None = None

    def run(self, order: RunStage) -> Ending:
        """Run a launch and return what came of it; raises if this process can run no other.

        One that follows a task is refused unless that has just made its output here.
        """
        made, self._made = self._made, None
        if order.follows not in {None, made}:
            message = f"{order.follows} made no output for {order.id}."
            return TaskFailed(order.id, message, retryable=True)
        ids = ids_of(task.request for task in order.tasks)
        with structlog.contextvars.bound_contextvars(**ids):
            ending = self._attempt(order)
        if order.seat is not None and isinstance(ending, TaskFailed | TeamBroke):
            self._groups.leave(order.seat.group)  # or the others would wait for this member
        return ending

    def _attempt(self, order: RunStage) -> Ending:
        try:
            return self._execute(order, self._groups.team(order.seat))
        except CancelledAtStep as stop:
            return TaskCancelled(order.id, stop.steps_done)
        except teams.TeamBroke as error:
            return TeamBroke(order.id, str(error))
        except NotFiniteError as error:
            return TaskFailed(order.id, str(error), retryable=True, not_finite=True)
        except StageFailedError as error:  # an input is gone, or its node does not answer
            return TaskFailed(order.id, str(error), retryable=error.retryable)
        except Exception as error:  # process boundary: reported, not swallowed
            log.exception("stage_run_failed", task=order.id)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)  # raises for good after a fault of the device
                torch.cuda.empty_cache()
            return TaskFailed(order.id, describe(error), retryable=is_for_memory(error))

    def _execute(self, order: RunStage, team: Team) -> LaunchDone:
        boundaries = [
            TaskBoundary(self._orders, self._transport, order.id, task, team, saving=self._saving)
            for task in order.tasks
        ]
        _expect_wanted(boundaries)
        clock = Stopwatch(self._device)
        jobs = [
            self._job(task, boundary)
            for task, boundary in zip(order.tasks, boundaries, strict=True)
        ]
        receive_s = clock.lap()
        results = self._stages[order.tasks[0].stage].run(jobs, team)
        run_s = clock.lap()
        leads = team.rank == 0
        outputs = [
            self._hand_off(job.task, result) if leads else None
            for job, result in zip(jobs, results, strict=True)
        ]
        send_s = clock.lap()
        ended = not any(result.snapshot or result.cancelled for result in results)
        self._made = order.id if ended else None
        reports = [
            StageReport(
                task=job.task.id,
                kind=job.task.stage.kind,
                receive_s=receive_s,
                run_s=run_s,
                send_s=send_s,
                peak_memory_bytes=clock.peak_memory_bytes(),
                steps_done=boundary.steps_done,
                paused=result.snapshot is not None,
                cancelled=result.cancelled,
                output=output,
                artifact=result.artifact if leads else None,
            )
            for job, boundary, result, output in zip(
                jobs, boundaries, results, outputs, strict=True
            )
        ]
        return LaunchDone(order.id, tuple(reports))

    def _job(self, task: StageTask, boundary: TaskBoundary) -> Job:
        inputs = {k: v for ref in task.inputs for k, v in self._transport.get(ref).items()}
        snapshot = None if task.saved is None else self._transport.get_snapshot(task.saved.ref)
        return Job(task, inputs, boundary, snapshot)

    def _hand_off(self, task: StageTask, result: StageResult) -> HandoffRef | None:
        if result.snapshot is not None:
            return self._transport.put_snapshot(task.node, task.id, result.snapshot)
        if not result.tensors:
            return None
        near = task.stage.kind is StageKind.DIFFUSE
        return self._transport.put(task.node, task.id, result.tensors, near=near)


class TaskBoundary:
    """The step boundaries of one task: where it reports, and hears what its launch was told.

    Attributes:
        steps_done: of all the request's steps; samplers of higher order make more of them.
        wants_pause: whether the launch was told to pause.
    """

    def __init__(
        self,
        orders: Orders,
        transport: FileTransport,
        launch: TaskId,
        task: StageTask,
        team: Team,
        *,
        saving: Saving | None,
    ) -> None:
        """Stand where the task begins; the leader saves for all."""
        self._orders, self._transport = orders, transport
        self._launch, self._task, self._team = launch, task, team
        self.steps_done = self._saved_at = task.steps_done
        self._saving, self._saved_s = saving if team.rank == 0 else None, time.monotonic()
        self.wants_pause = False

    def hear(self) -> None:
        """Agree on what the launch was told; raise `CancelledAtStep` if this task is to stop."""
        said = self._team.agree(self._orders.hear(self._launch, self._task.id))
        if said == Said.CANCEL:
            raise CancelledAtStep(self.steps_done)
        self.wants_pause = said == Said.PAUSE

    @property
    def wants_save(self) -> bool:
        """Whether enough steps and time have passed since the task was last saved."""
        steps, passed_s = self.steps_done - self._saved_at, time.monotonic() - self._saved_s
        return self._saving is not None and self._saving.is_due(steps, passed_s)

    def keep(self, snapshot: Snapshot) -> None:
        """Leave what was saved, and tell the controller."""
        name = saved_of(self._task.id, self.steps_done)
        latent = self._transport.put_snapshot(self._task.node, name, snapshot)
        saved = SavedLatent(self.steps_done, latent)
        self._orders.report_saved(self._launch, self._task.id, saved)
        self._saved_at, self._saved_s = self.steps_done, time.monotonic()

    def show(self, index: int, latents: torch.Tensor) -> None:
        """Leave a predicted clean latent to be decoded as preview number `index`."""
        if self._team.rank > 0:
            return
        name = preview_of(self._task.id, index)
        latent = self._transport.put(self._task.node, name, {LATENTS: latents})
        self._orders.report_latent(self._task.id, index, latent)

    def passed(self, step: int, steps: int) -> None:
        """Report a step, then hear what the task was told."""
        self.steps_done = step * self._task.request.steps // steps
        if self._team.rank == 0:
            self._orders.report_step(self._launch, step, steps)
        self.hear()


def _expect_wanted(boundaries: Sequence[TaskBoundary]) -> None:
    """Raise `CancelledAtStep` if all tasks of a launch were cancelled before it began."""
    stops = list[CancelledAtStep]()
    for boundary in boundaries:
        try:
            boundary.hear()
        except CancelledAtStep as stop:
            stops.append(stop)
    if len(stops) == len(boundaries):
        raise stops[0]


def is_for_memory(error: Exception) -> bool:
    """Whether memory was wanting; torch's CPU allocator says so in words only."""
    wanting = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return wanting or (isinstance(error, RuntimeError) and _CPU_OUT_OF_MEMORY in str(error))


def describe(error: Exception) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {error}"
