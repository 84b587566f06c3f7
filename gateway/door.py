"""Whether a job is let in: as it is, with fewer denoise steps, or not at all. Pure.

It stands in the transaction that adds the job, in the thread of the database, and so has asked the
engine all it needs before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from engine.eta import degrade, predict
from gateway.errors import DeadlineError
from gateway.resolve import schedule_of

if TYPE_CHECKING:
    from engine import GenerationRequest
    from gateway.jobs.entry import Backlog
    from gateway.jobs.record import NewJob


class Thrift:
    """A job with fewer denoise steps. What steps take is a line, so both of its ends tell all."""

    def __init__(
        self,
        wished: NewJob,
        leanest: NewJob,
        with_schedule: Callable[[int], GenerationRequest],
    ) -> None:
        """Know a job as wished and with the least steps that it allows."""
        self.wished, self.leanest, self._with_schedule = wished, leanest, with_schedule

    def cut_to(self, schedule_steps: int) -> NewJob:
        """Return the job with a whole schedule of so many steps."""
        request = self._with_schedule(schedule_steps)
        wished, leanest = self.wished, self.leanest
        most, least = wished.request.steps, leanest.request.steps
        saved = (most - request.steps) / (most - least) if most > least else 0.0
        return msgspec.structs.replace(
            wished,
            request=request,
            predicted_s=wished.predicted_s - saved * (wished.predicted_s - leanest.predicted_s),
            work_s=wished.work_s - saved * (wished.work_s - leanest.work_s),
        )


class Door:
    """Predicts when a job would end; lets it in, perhaps with fewer steps, or refuses it.

    A job is cut only if that makes it on time, and refused only if it would miss its own hard
    deadline. While the cost model only guesses, the door is open and says nothing.
    """

    def __init__(
        self,
        new: NewJob,
        thrift: Thrift | None,
        *,
        now_s: float,
        devices: int,
        is_hard: bool,
        is_known: bool,
    ) -> None:
        """Predict with what the engine said at `now_s`; without `thrift` cut nothing."""
        self._new, self._thrift = new, thrift
        self._now_s, self._devices = now_s, devices
        self._is_hard, self._is_known = is_hard, is_known
        self.is_met: bool | None = None

    def __call__(self, before: Backlog) -> NewJob:
        """Return the job as it is let in, given what would be before it.

        Raises:
            DeadlineError: it would miss its own hard deadline.
        """
        if not self._is_known:
            return self._new
        admitted = self._cut(before, self._thrift) if self._thrift else self._new
        self.is_met = self._finish_s(before, admitted) <= admitted.request.deadline_s
        if self._is_hard and not self.is_met:
            raise self._too_late(before)
        return admitted

    def _cut(self, before: Backlog, thrift: Thrift) -> NewJob:
        """Return the job with the most steps that are on time, or as it is if none are."""
        how = degrade(
            schedule_of(self._new.request),
            schedule_of(thrift.leanest.request),
            lambda steps: self._finish_s(before, thrift.cut_to(steps)),
            deadline_s=self._new.request.deadline_s,
        )
        if how is None:
            return self._new
        lean = thrift.cut_to(how.used_steps)
        request = msgspec.structs.replace(lean.request, degraded=how)
        return msgspec.structs.replace(lean, request=request)

    def _finish_s(self, before: Backlog, job: NewJob) -> float:
        return predict(
            before.work_s, rest_s=job.predicted_s, devices=self._devices, now_s=self._now_s
        ).expected_s

    def _too_late(self, before: Backlog) -> DeadlineError:
        """Say when the job would end, with as few steps as it allows."""
        leanest = self._thrift.leanest if self._thrift else self._new
        return DeadlineError(
            finish_in_s=self._finish_s(before, leanest) - self._now_s,
            deadline_in_s=leanest.request.deadline_s - self._now_s,
            alone_s=leanest.predicted_s,
            least_steps=schedule_of(leanest.request) if self._thrift else None,
        )
