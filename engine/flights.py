"""One launch in the air: an assignment that holds its team, from acquisition to its report.

Knows the requests it works for and how far it has come; the core decides what follows from that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from engine.errors import RequestCancelledError
from engine.messages import StageReport
from engine.runs import RequestRun
from engine.types import (
    Assignment,
    HandoffRef,
    PlanId,
    RunningView,
    SavedLatent,
    StageTask,
    TaskId,
)


class Follower(NamedTuple):
    """A stage that the worker goes on with: its order, which has been sent, and its reports."""

    order: Assignment
    reports: asyncio.Future[tuple[StageReport, ...]]


class Flight:
    """A launch and the requests whose tasks it carries.

    Attributes:
        assignment: its tasks are those of `runs`, in the same order.
        plan: the decision that launched it.
        onward: the launch that follows at the next step boundary, if a resize was asked for.
        ahead: what the worker goes on with when this has landed.
        reports: what it will report, if its order was sent with the launch before.
        has_paused: whether it ended at a step boundary, with the rest still to do.
    """

    def __init__(
        self, assignment: Assignment, runs: Sequence[RequestRun], plan: PlanId, now_s: float
    ) -> None:
        """Mark every task as running."""
        self.assignment, self.runs, self.plan = assignment, tuple(runs), plan
        self.onward: Assignment | None = None
        self.ahead: tuple[Follower, ...] = ()
        self.reports: asyncio.Future[tuple[StageReport, ...]] | None = None
        self._started_s = self._step_at_s = now_s
        self._ends_s = now_s + assignment.expected_s
        self._step = assignment.task.steps_done
        self._pausing = self.has_paused = False
        for task, run in self.parts:
            run.begin(task, assignment)

    @property
    def parts(self) -> tuple[tuple[StageTask, RequestRun], ...]:
        """Each task with the request it belongs to."""
        return tuple(zip(self.assignment.tasks, self.runs, strict=True))

    @property
    def ends_s(self) -> float:
        """When it is expected to land if nothing changes it."""
        return self._ends_s

    @property
    def is_wanted(self) -> bool:
        """Whether the outcome of some request is still open."""
        return any(not run.is_over for run in self.runs)

    @property
    def is_changing(self) -> bool:
        """Whether it was asked to stop at its next step boundary."""
        return self._pausing or self.onward is not None

    def expect_wanted(self) -> None:
        """Raise `RequestCancelledError` if all outcomes are known, so that no work is wasted."""
        if not self.is_wanted:
            message = f"{self.assignment.task.id} ended before its stage could start."
            raise RequestCancelledError(message)

    def stop_at_boundary(self, onward: Assignment | None = None) -> None:
        """Note that it will stop at its next boundary, to go on as `onward` if given."""
        self._pausing, self.onward = True, onward

    def note_step(self, step: int, steps: int, now_s: float) -> None:
        """Note that denoise step `step` of `steps` is done; samplers may make more of a request's."""
        done = step * self.assignment.task.request.steps // steps
        if done != self._step:
            self._step, self._step_at_s = done, now_s
        for task, run in self.parts:
            run.note_step(task, step, steps)

    def keep(self, task: TaskId, saved: SavedLatent) -> tuple[HandoffRef, ...]:
        """Let a task start from `saved` if this launch fails; return the latents that are spent."""
        for mine, run in self.parts:
            if mine.id == task and not run.is_over:
                return run.keep(mine, saved)
        return (saved.ref,)

    def view(self) -> RunningView:
        """Return what policies may see of it."""
        return RunningView(
            assignment=self.assignment,
            started_s=self._started_s,
            ends_s=self._ends_s,
            step=self._step,
            step_at_s=self._step_at_s,
            is_changing=self.is_changing,
        )


def carrying(assignment: Assignment, tasks: Sequence[StageTask]) -> Assignment:
    """Return the assignment with only `tasks` of its own aboard."""
    return msgspec.structs.replace(assignment, task=tasks[0], riders=tuple(tasks[1:]))
