"""News of jobs: a port, and its in-process implementation; carriers.py has those between processes.

Events only wake somebody up; the truth is in the table. A lost event therefore costs one slow
poll and nothing else, so implementations over a network may be lossy.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from typing import Final, Protocol

import msgspec

from gateway.jobs.record import Job, JobId
from gateway.jobs.state import TERMINAL, JobStatus

_MOST_WAITING: Final = 1000
_ENDS_KNOWN: Final = 1000


class JobEvent(msgspec.Struct, frozen=True):
    """A job changed."""

    job: JobId
    status: JobStatus
    cancel_requested: bool = False


class Look(msgspec.Struct, frozen=True):
    """A job as it was last seen, and its files if this process has just made them."""

    job: Job
    contents: tuple[bytes, ...] = ()


class JobEnding(JobEvent, frozen=True, kw_only=True):
    """A job was completed here, so who waits for it here need not ask table and store."""

    look: Look


def event_of(job: Job) -> JobEvent:
    """Return the event that tells of a job as it is now."""
    return JobEvent(job.id, job.status, job.cancel_requested)


def bare(event: JobEvent) -> JobEvent:
    """Return an event as it may be kept or sent elsewhere: without the job and its files."""
    return JobEvent(event.job, event.status, event.cancel_requested)


class Watch(Protocol):
    """One listener."""

    async def next(self, *, timeout_s: float) -> Sequence[JobEvent]:
        """Return the events that came; none if `timeout_s` seconds passed or after a nudge."""
        ...

    def nudge(self) -> None:
        """Have `next` return now."""
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
        """Listen to one job, or to all, for as long as the context lasts.

        Who begins to listen to a job when this process has just heard of its end hears of it, too.
        """
        ...

    def connected(self) -> AbstractAsyncContextManager[None]:
        """Carry events between processes for as long as the context lasts."""
        ...


class _Mailbox:
    """What one listener has not heard yet; a future and a timer are all that its wait costs."""

    def __init__(self) -> None:
        # A bound, because a watcher may be slow and the table knows better.
        self._events: deque[JobEvent] = deque(maxlen=_MOST_WAITING)
        self._nudged = False
        self._arrival: asyncio.Future[None] | None = None

    def deliver(self, event: JobEvent) -> None:
        self._events.append(event)
        self._wake()

    def nudge(self) -> None:
        self._nudged = True
        self._wake()

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    async def next(self, *, timeout_s: float) -> Sequence[JobEvent]:
        if not (self._events or self._nudged):
            loop = asyncio.get_running_loop()
            self._arrival = loop.create_future()
            timer = loop.call_later(timeout_s, self._wake)
            try:
                await self._arrival
            finally:
                timer.cancel()
        events, self._nudged = list(self._events), False
        self._events.clear()
        return events


class InProcessEvents:
    """Events between coroutines of one process."""

    def __init__(self) -> None:
        """Begin with nobody listening."""
        self._mailboxes: defaultdict[JobId | None, set[_Mailbox]] = defaultdict(set)
        self._ends: dict[JobId, JobEvent] = {}

    def publish(self, event: JobEvent) -> None:
        """Tell everyone who watches now."""
        if event.status in TERMINAL:
            self._remember(event)
        for mailbox in self._mailboxes.get(event.job, ()):
            mailbox.deliver(event)
        for mailbox in self._mailboxes.get(None, ()):
            mailbox.deliver(bare(event))

    def _remember(self, end: JobEvent) -> None:
        self._ends[end.job] = bare(end)
        if len(self._ends) > _ENDS_KNOWN:
            del self._ends[next(iter(self._ends))]

    def nudge(self) -> None:
        """Have everyone look up now."""
        for mailboxes in self._mailboxes.values():
            for mailbox in mailboxes:
                mailbox.nudge()

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """There is nothing to carry."""
        yield

    @contextmanager
    def watch(self, job: JobId | None = None) -> Iterator[Watch]:
        """Listen to one job, or to all, for as long as the context lasts."""
        mailbox = _Mailbox()
        self._mailboxes[job].add(mailbox)
        if job in self._ends:
            mailbox.deliver(self._ends[job])
        try:
            yield mailbox
        finally:
            self._mailboxes[job].discard(mailbox)
            if not self._mailboxes[job]:
                del self._mailboxes[job]
