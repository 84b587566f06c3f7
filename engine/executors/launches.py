"""A launch on the members of its team: one order to each, one ending from each, one outcome.

The orders of a launch are sent together, so every member gets its launches in the same order and
no two members can wait for each other. A launch ends when all its members have ended: only then
is the team free. When one fails, the group is broken up, so that the others fail within moments
instead of waiting for it; who does not end even then is killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import msgspec

from engine.errors import (
    EngineError,
    RequestCancelledError,
    StageFailedError,
    TeamBrokenError,
    WorkerLostError,
)
from engine.executors.groups import GroupTable, Members
from engine.messages import FromWorker, LaunchDone, RunStage, StageReport, ToWorker
from engine.types import Assignment, DeviceId

STRAGGLE_S = 20.0  # for a member to notice that its team broke; a kernel may take some seconds


class Line(Protocol):
    """How to ask workers."""

    def is_up(self, device: DeviceId) -> bool:
        """Whether a process serves the device."""
        ...

    def call(self, device: DeviceId, key: str, message: ToWorker) -> asyncio.Future[FromWorker]:
        """Send an order now and return its reply to come, or the `EngineError` it ends with."""
        ...

    def kill(self, device: DeviceId) -> None:
        """End a device's process, which fails its calls."""
        ...


class Launches:
    """Runs assignments on the devices of one node."""

    def __init__(self, line: Line, groups: GroupTable) -> None:
        """Begin to count launches."""
        self._line, self._groups = line, groups
        self._count = 0

    async def run(self, assignment: Assignment, *, pause: bool = False) -> tuple[StageReport, ...]:
        """Run a launch and return a report per task; with `pause`, up to its first boundary.

        Raises:
            StageFailedError: a member failed; which of several errors is told, see `blame`.
            WorkerLostError: a member died, or its team broke for no reason of its own.
            RequestCancelledError: the team stopped because it was told to.
        """
        members = self._groups.in_order(assignment.team)
        down = [device for device in members if not self._line.is_up(device)]
        if down:
            message = f"Device {down[0]} has no live worker."
            raise WorkerLostError(message, began=False)
        calls = self._order(members, assignment, pause=pause)
        try:
            killed = await self._all_ended(members, calls)
        finally:
            for call in calls:
                call.cancel()  # nothing but when the engine closes in mid-launch
        errors = {d: e for d, call in zip(members, calls, strict=True) if (e := call.exception())}
        if errors:
            error = min(errors.values(), key=blame)
            if isinstance(error, WorkerLostError):
                error.devices = tuple(d for d in errors if _died(errors[d]) and d not in killed)
            raise error
        return _merged([call.result() for call in calls])

    def _order(
        self, members: Members, assignment: Assignment, *, pause: bool
    ) -> list[asyncio.Future[FromWorker]]:
        """Send a launch's orders to all members in one go."""
        self._count += 1
        tasks, number, follows = assignment.tasks, self._count, assignment.follows
        return [
            self._line.call(device, tasks[0].id, RunStage(tasks, number, seat, pause, follows))
            for device, seat in zip(members, self._groups.seats(members), strict=True)
        ]

    async def _all_ended(
        self, members: Members, calls: list[asyncio.Future[FromWorker]]
    ) -> set[DeviceId]:
        """Wait until every member has ended, with little patience once one has failed.

        Returns those who had to be killed.
        """
        running, patience_s, killed = set(calls), None, set[DeviceId]()
        while running:
            ended, running = await asyncio.wait(
                running, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
            )
            if running and not ended:
                for device, call in zip(members, calls, strict=True):
                    if call in running:
                        killed.add(device)
                        self._line.kill(device)
            elif patience_s is None and any(_has_failed(call) for call in ended):
                self._groups.break_up(members)
                patience_s = STRAGGLE_S
        return killed


def _has_failed(call: asyncio.Future[FromWorker]) -> bool:
    """Whether a member ended as its peers will not; a cancellation is agreed among them."""
    error = call.exception()
    return error is not None and not isinstance(error, RequestCancelledError)


def _died(error: BaseException) -> bool:
    return isinstance(error, WorkerLostError) and not isinstance(error, TeamBrokenError)


def blame(error: BaseException) -> int:
    """Return the rank of an error among those of one launch: the cause before what it caused."""
    match error:
        case StageFailedError():
            return 0
        case TeamBrokenError():
            return 2
        case WorkerLostError():
            return 1
        case EngineError():
            return 3
    return -1  # a bug is told before everything else


def _merged(replies: Sequence[FromWorker]) -> tuple[StageReport, ...]:
    """Return the leader's reports, with the most memory that any member needed."""
    leader, *others = (_reports(reply) for reply in replies)
    return tuple(
        msgspec.structs.replace(
            report,
            peak_memory_bytes=max(
                report.peak_memory_bytes, *(other[i].peak_memory_bytes for other in others), 0
            ),
        )
        for i, report in enumerate(leader)
    )


def _reports(reply: FromWorker) -> tuple[StageReport, ...]:
    assert isinstance(reply, LaunchDone), reply
    return reply.reports
