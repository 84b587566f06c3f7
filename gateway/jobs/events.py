"""News of jobs: a port, and its in-process implementation; carriers.py has those between processes.

Events only wake somebody up; the truth is in the table. A lost event therefore costs one slow
poll and nothing else, so implementations over a network may be lossy.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from typing import Final, Protocol

import msgspec

from gateway.jobs.record import Job, JobId
from gateway.jobs.state import JobStatus

_MOST_WAITING: Final = 1000


class JobEvent(msgspec.Struct, frozen=True):
    """A job changed."""

    job: JobId
    status: JobStatus
    cancel_requested: bool = False


def event_of(job: Job) -> JobEvent:
    """Return the event that tells of a job as it is now."""
    return JobEvent(job.id, job.status, job.cancel_requested)


class Watch(Protocol):
    """One listener."""

    async def next(self, *, timeout_s: float) -> Sequence[JobEvent]:
        """Return the events that came; none if `timeout_s` seconds passed or after a nudge."""
        ...


class JobEvents(Protocol):
    """Carries events between the API and the runner."""

    def publish(self, event: JobEvent) -> None:
        """Tell everyone who watches now."""
        ...

    def nudge(self) -> None:
        """Have everyone in this process look up now, because it stops."""
        ...

    def watch(self, job: JobId | None = None) -> AbstractContextManager[Watch]:
        """Listen to one job, or to all, for as long as the context lasts."""
        ...

    def connected(self) -> AbstractAsyncContextManager[None]:
        """Carry events between processes for as long as the context lasts."""
        ...


class _Mailbox:
    def __init__(self, job: JobId | None) -> None:
        self._job = job
        # None is a nudge; a bound, because a watcher may be slow and the table knows better.
        self._events: asyncio.Queue[JobEvent | None] = asyncio.Queue(_MOST_WAITING)

    def deliver(self, event: JobEvent | None) -> None:
        if (event is None or self._job in {None, event.job}) and not self._events.full():
            self._events.put_nowait(event)

    async def next(self, *, timeout_s: float) -> Sequence[JobEvent]:
        events: list[JobEvent | None] = []
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                events.append(await self._events.get())
        while not self._events.empty():
            events.append(self._events.get_nowait())
        return [event for event in events if event is not None]


class InProcessEvents:
    """Events between coroutines of one process."""

    def __init__(self) -> None:
        """Begin with nobody listening."""
        self._mailboxes: set[_Mailbox] = set()

    def publish(self, event: JobEvent) -> None:
        """Tell everyone who watches now."""
        for mailbox in self._mailboxes:
            mailbox.deliver(event)

    def nudge(self) -> None:
        """Have everyone look up now."""
        for mailbox in self._mailboxes:
            mailbox.deliver(None)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """There is nothing to carry."""
        yield

    @contextmanager
    def watch(self, job: JobId | None = None) -> Iterator[Watch]:
        """Listen to one job, or to all, for as long as the context lasts."""
        mailbox = _Mailbox(job)
        self._mailboxes.add(mailbox)
        try:
            yield mailbox
        finally:
            self._mailboxes.discard(mailbox)
