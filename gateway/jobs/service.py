"""What the API does with jobs: submit, wait, find, list, cancel, delete.

Knows no HTTP and no engine internals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.errors import ClosingError, JobTimeoutError, OverloadedError
from gateway.jobs.events import event_of
from gateway.jobs.state import TERMINAL
from gateway.jobs.store import QueueFullError

if TYPE_CHECKING:
    from engine import Modality
    from engine.ports import Clock
    from gateway.auth.principal import TenantId
    from gateway.jobs.events import JobEvents
    from gateway.jobs.record import Job, JobId, NewJob
    from gateway.jobs.store import JobStore, PageQuery

RETRY_AFTER_S: Final = 2.0
_POLL_S: Final = 2.0  # the floor under lost events


class JobService:
    """Jobs on behalf of callers."""

    def __init__(
        self, store: JobStore, events: JobEvents, clock: Clock, *, queue_limit: int
    ) -> None:
        """Let at most `queue_limit` jobs wait."""
        self._store = store
        self._events = events
        self._clock = clock
        self._queue_limit = queue_limit
        self._closing = False

    def close(self) -> None:
        """Send every waiting caller away, because the server stops."""
        self._closing = True
        self._events.nudge()

    async def submit(self, new: NewJob) -> Job:
        """Write the job down and wake a runner.

        Raises:
            OverloadedError: the queue is full.
        """
        try:
            job = await self._store.add(new, queue_limit=self._queue_limit)
        except QueueFullError as error:
            message = (
                f"The server is overloaded: {self._queue_limit} requests are waiting already. "
                "Please retry shortly."
            )
            raise OverloadedError(message, retry_after_s=RETRY_AFTER_S) from error
        self._events.publish(event_of(job))
        return job

    async def wait(self, job_id: JobId, tenant: TenantId, *, until_s: float) -> Job:
        """Return the job once it is over.

        Raises:
            JobTimeoutError: it was not over at `until_s`; it still runs unless cancelled.
            ClosingError: the server is shutting down.
        """
        with self._events.watch(job_id) as watch:
            while True:
                job = await self._store.get(job_id, tenant)
                if job is None or job.status in TERMINAL:
                    return _existing(job, job_id)
                if self._closing:
                    raise ClosingError(job_id)
                left_s = until_s - self._clock.now()
                if left_s <= 0:
                    raise JobTimeoutError(job_id)
                await watch.next(timeout_s=min(_POLL_S, left_s))

    async def find(self, job_id: JobId, tenant: TenantId, modality: Modality) -> Job | None:
        """Return the tenant's job of this kind, or None."""
        return await self._store.find(job_id, tenant, modality)

    async def page(self, query: PageQuery) -> list[Job]:
        """Return some of a tenant's jobs."""
        return await self._store.page(query)

    async def delete(self, job_id: JobId, tenant: TenantId, modality: Modality) -> Job | None:
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


def _existing(job: Job | None, job_id: JobId) -> Job:
    if job is None:
        message = f"Job {job_id} vanished from the table while its caller waited for it."
        raise LookupError(message)
    return job
