"""What the API does with jobs: submit, wait, find, list, cancel, delete.

Knows no HTTP and no engine internals.
"""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from gateway.errors import ClosingError, JobTimeoutError
from gateway.jobs.events import JobEnding, Look, event_of
from gateway.jobs.state import TERMINAL, JobStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractContextManager

    from engine import Modality
    from engine.ports import Clock
    from gateway.auth.principal import TenantId
    from gateway.jobs.entry import Backlog
    from gateway.jobs.events import JobEvent, JobEvents, Watch
    from gateway.jobs.record import Job, JobId, Lease, NewJob
    from gateway.jobs.store import JobStore, PageQuery

_POLL_S: Final = 2.0  # the floor under lost events
_GLANCE_S: Final = 1.0  # progress is written once a second, without an event
_HEARTBEAT_S: Final = 15.0

_log = structlog.get_logger(__name__)


class RunnerHere(Protocol):
    """The runner of this process, as far as the one who adds jobs may call it."""

    def offer(self) -> AbstractContextManager[Lease | None]:
        """Keep a place for as long as the context lasts, if a job could be begun now."""
        ...

    def begin(self, job: Job) -> None:
        """Run a job that was added with the lease that was offered."""
        ...


class JobService:
    """Jobs on behalf of callers."""

    def __init__(
        self, store: JobStore, events: JobEvents, clock: Clock, runner: RunnerHere | None = None
    ) -> None:
        """Keep jobs in `store` and tell of them by `events`; a `runner` may begin them at once."""
        self._runner = runner
        self._store = store
        self._events = events
        self._clock = clock
        self._closing = False
        self._leaving: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Send every waiting caller away, because the server stops."""
        self._closing = True
        self._events.nudge()
        for task in self._leaving:
            task.cancel()

    async def submit(
        self, new: NewJob, *, queue_limit: int, admit: Callable[[Backlog], NewJob]
    ) -> Job:
        """Write the job down and wake a runner, or return the job of an equal request.

        If its caller waits, there is room for it here and nobody is before it, its row is written
        with our lease and it begins: that is a transaction less than to queue it. Nobody outside may hear of it before `flush` has returned.

        Raises:
            QueueFullError, KeyReusedError: see `JobStore.add`.
        """
        with self._offered(new) as lease:
            job = await self._store.add(
                new, queue_limit=queue_limit, now_s=self._clock.now(), admit=admit, lease=lease
            )
            if job.id == new.id:
                self._start(job)
            return job

    def _offered(self, new: NewJob) -> AbstractContextManager[Lease | None]:
        return self._runner.offer() if self._runner and new.waiters else nullcontext()

    def _start(self, job: Job) -> None:
        if self._runner is not None and job.status is JobStatus.IN_PROGRESS:
            self._runner.begin(job)
        else:
            self._events.publish(event_of(job))

    async def flush(self) -> None:
        """Return once a power cut cannot take back what was submitted before."""
        await self._store.flush()

    async def backlog(self, job: Job) -> Backlog:
        """Return what is before a job."""
        return await self._store.backlog(job)

    async def leave(self, job: Job, *, grace_s: float = 0.0) -> None:
        """Wait no longer for a job; unless others do, it is cancelled.

        A caller who may come back has `grace_s` seconds to attach to the job again; that time
        passes in the background.
        """
        if not grace_s:
            await self._leave(job)
            return
        task = asyncio.create_task(self._leave_later(job, grace_s), name=f"leave {job.id}")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _leave_later(self, job: Job, grace_s: float) -> None:
        await self._clock.sleep(grace_s)
        try:
            await self._leave(job)
        except Exception as error:  # noqa: BLE001 - the job then runs to its end
            _log.warning("job_not_left", job_id=job.id, reason=repr(error))

    async def _leave(self, job: Job) -> None:
        cancelled = await self._store.leave(job.id, job.tenant, now_s=self._clock.now())
        if cancelled is not None:
            self._events.publish(event_of(cancelled))

    async def wait(self, job: Job, *, until_s: float, leaving: asyncio.Future[None]) -> Look | None:
        """Return the job once it is over; None once whoever waits is `leaving`.

        The table is not asked because of news that the job has not ended.

        Raises:
            JobTimeoutError: it was not over at `until_s`; it still runs unless cancelled.
            ClosingError: the server is shutting down.
        """
        look = Look(job)
        with self._events.watch(job.id) as watch:
            leaving.add_done_callback(lambda _: watch.nudge())
            while look.job.status not in TERMINAL:
                news = await self._news(watch, job, until_s)
                is_over = any(event.status in TERMINAL for event in news)
                if leaving.done() and not is_over:
                    return None
                if is_over or not news:
                    look = _ending(news) or Look(await self._existing(job))
        return look

    async def wakes(self, job: Job, *, until_s: float) -> AsyncIterator[Look]:
        """Yield the job as it is known and whenever something may have happened; its end last.

        Raises as `wait` does.
        """
        look = Look(job)
        with self._events.watch(job.id) as watch:
            yield look
            while look.job.status not in TERMINAL:
                news = await self._news(watch, job, until_s)
                look = _ending(news) or Look(await self._existing(job))
                yield look

    async def _news(self, watch: Watch, job: Job, until_s: float) -> Sequence[JobEvent]:
        """Return what is told of a job next; nothing if it is time to look for oneself."""
        if self._closing:
            raise ClosingError(job.id)
        left_s = until_s - self._clock.now()
        if left_s <= 0:
            raise JobTimeoutError(job.id)
        return await watch.next(timeout_s=min(_POLL_S, left_s))

    async def _existing(self, job: Job) -> Job:
        found = await self._store.get(job.id, job.tenant)
        if found is None:
            message = f"Job {job.id} vanished from the table while its caller waited for it."
            raise LookupError(message)
        return found

    async def changes(self, job_id: JobId, tenant: TenantId) -> AsyncIterator[Job | None]:
        """Yield a job now and whenever it has changed, until it is over or the server stops.

        Yields None after 15 quiet seconds.
        """
        last, quiet_s = None, 0.0
        with self._events.watch(job_id) as watch:
            while (job := await self._store.find(job_id, tenant)) is not None:
                gist = (job.status, job.progress, job.cancel_requested, job.kept, job.schedule)
                if gist != last:
                    last, quiet_s = gist, 0.0
                    yield job
                elif quiet_s >= _HEARTBEAT_S:
                    quiet_s = 0.0
                    yield None
                if job.status in TERMINAL or self._closing:
                    return
                await watch.next(timeout_s=_GLANCE_S)
                quiet_s += _GLANCE_S

    async def find(
        self, job_id: JobId, tenant: TenantId, modality: Modality | None = None
    ) -> Job | None:
        """Return the tenant's job (of this kind), or None."""
        return await self._store.find(job_id, tenant, modality)

    async def page(self, query: PageQuery) -> list[Job]:
        """Return some of a tenant's jobs."""
        return await self._store.page(query)

    async def delete(
        self, job_id: JobId, tenant: TenantId, modality: Modality | None = None
    ) -> Job | None:
        """Hide a job for good, and stop it now or at its next step; None if there is none."""
        job = await self._store.delete(job_id, tenant, modality, now_s=self._clock.now())
        if job is not None:
            self._events.publish(event_of(job))
        return job

    async def cancel(self, job_id: JobId, tenant: TenantId) -> Job | None:
        """Stop a job, now or at its next step; None if it was over already."""
        job = await self._store.request_cancel(job_id, tenant, now_s=self._clock.now())
        if job is not None:
            self._events.publish(event_of(job))
        return job


def _ending(news: Sequence[JobEvent]) -> Look | None:
    return next((event.look for event in news if isinstance(event, JobEnding)), None)
