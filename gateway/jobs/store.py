"""The job table as the API sees it: add, read, list, ask to cancel, delete.

The runner's side is leases.py.

Every read and every change made for a caller is scoped to the caller's tenant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import bindparam, case, delete, func, insert, select, update

from engine import GenerationRequest, Modality
from gateway.auth.principal import TenantId
from gateway.jobs.entry import Backlog, backlog, backlog_before, enter_alone, same_job
from gateway.jobs.record import Job, JobId, NewJob, StoredArtifact, key_of
from gateway.jobs.rows import (
    ARTIFACT_COLUMNS,
    ARTIFACTS,
    JOB_COLUMNS,
    JOBS,
    artifact_of,
    job_of,
    json_of,
    new_job_of,
    readable_jobs_of,
    values_of,
)
from gateway.jobs.state import ACTIVE, JobStatus

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from sqlalchemy import ColumnElement, Connection, Select

    from gateway.db.session import Database
    from gateway.jobs.record import ArtifactId, Lease


class QueueFullError(Exception):
    """As many jobs as may wait are waiting already."""

    def __init__(self, backlog: Backlog) -> None:
        """Remember what waits, to tell when there may be room."""
        super().__init__(backlog)
        self.backlog = backlog


class PageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of a tenant's jobs to list: up to `limit` of them, beyond the job `after`."""

    tenant: TenantId
    limit: int
    modality: Modality | None = None
    status: JobStatus | None = None
    after: JobId | None = None
    newest_first: bool = True


class JobStore:
    """Durable jobs. What it returns is true at the time of the read and never changes."""

    def __init__(self, database: Database) -> None:
        """Use `database` for every call."""
        self._database = database

    async def add(
        self,
        new: NewJob,
        *,
        queue_limit: int,
        now_s: float = 0.0,
        admit: Callable[[Backlog], NewJob] | None = None,
        lease: Lease | None = None,
    ) -> Job:
        """Write a job, or attach its caller to the job of an equal request.

        It is queued, or held by whoever offers a `lease` if no other job waits. It may be run at once; a power cut cannot take it back any more once `flush` has returned.
        `admit` sees what would be before the job, and returns it as it is to be written, or raises
        to refuse it; it may run in another thread, and more than once.

        Raises:
            QueueFullError: `queue_limit` jobs are waiting.
            KeyReusedError: the idempotency key belongs to another request.
        """

        def work(connection: Connection) -> Job:
            enter_alone(connection)
            if (same := same_job(connection, new, now_s=now_s)) is not None:
                return same
            before = backlog_before(connection, new.request.deadline_s)
            if before.waiting >= queue_limit:
                raise QueueFullError(before)
            admitted = new if admit is None else admit(before)
            held = None if before.waiting else lease
            connection.execute(_ADD, values_of(admitted, held))
            return new_job_of(admitted, held)

        return await self._database.write(work, sync=False)

    async def flush(self) -> None:
        """Return once a power cut cannot take back what was added before."""
        await self._database.flush()

    async def backlog(self, job: Job) -> Backlog:
        """Return what is before a waiting job; of a running one, what runs beside it."""
        deadline_s, key = job.request.deadline_s, key_of(job.id)
        earlier = (JOBS.c.deadline_s < deadline_s) | (
            (JOBS.c.deadline_s == deadline_s) & (JOBS.c.id < key)
        )
        return await self._database.read(lambda connection: backlog(connection, earlier, but=key))

    async def census(self) -> dict[JobStatus, int]:
        """Return how many jobs of all tenants are in each state that is not terminal."""
        statement = select(JOBS.c.status, func.count()).group_by(JOBS.c.status)

        def work(connection: Connection) -> dict[JobStatus, int]:
            rows = connection.execute(statement.where(JOBS.c.status.in_(ACTIVE)))
            return {JobStatus(status): int(count) for status, count in rows}

        found = await self._database.read(work)
        return {status: found.get(status, 0) for status in sorted(ACTIVE)}

    async def leave(self, job: JobId, tenant: TenantId, *, now_s: float) -> Job | None:
        """Note that a caller waits no longer; the last one's leaving cancels the job.

        Returns the job as it is now if that cancelled it.
        """
        statement = (
            update(JOBS)
            .where(*_owned(job, tenant), JOBS.c.status.in_(ACTIVE))
            .values(waiters=JOBS.c.waiters - 1)
            .returning(JOBS.c.waiters)
        )

        def work(connection: Connection) -> Job | None:
            waiters = connection.scalars(statement).one_or_none()
            if waiters is None or waiters > 0:
                return None
            return _request_cancel(connection, job, tenant, now_s)

        return await self._database.write(work)

    async def get(self, job: JobId, tenant: TenantId) -> Job | None:
        """Return the tenant's job, or None if the tenant has no such job."""
        return await self._one(_GET, {"job": key_of(job), "owner": tenant})

    async def find(
        self, job: JobId, tenant: TenantId, modality: Modality | None = None
    ) -> Job | None:
        """Return the tenant's job (of this kind), or None if there is none or it was deleted."""
        wanted = select(*JOB_COLUMNS).where(*_owned(job, tenant), *_shown(modality))
        return await self._one(wanted, {})

    async def _one(self, wanted: Select[Any], values: dict[str, Any]) -> Job | None:
        return await self._database.read(
            lambda connection: job_of(connection, connection.execute(wanted, values).one_or_none())
        )

    async def page(self, query: PageQuery) -> list[Job]:
        """Return jobs in the order they were made, which is the order of their keys.

        `after` need not exist any more: a caller may delete what it lists. What another version
        wrote and this one cannot read is left out.
        """
        statement = select(*JOB_COLUMNS).where(
            JOBS.c.tenant == query.tenant, *_shown(query.modality)
        )
        if query.status is not None:
            statement = statement.where(JOBS.c.status == query.status.value)
        order = JOBS.c.id.desc() if query.newest_first else JOBS.c.id.asc()
        statement = statement.order_by(order).limit(query.limit)

        def work(connection: Connection) -> list[Job]:
            jobs: list[Job] = []
            after = None if query.after is None else key_of(query.after)
            while True:
                rows = connection.execute(_beyond(statement, after, query)).all()
                jobs += readable_jobs_of(connection, rows)
                if len(rows) < query.limit or len(jobs) >= query.limit:
                    return jobs[: query.limit]
                after = rows[-1].id

        return await self._database.read(work)

    async def delete(
        self, job: JobId, tenant: TenantId, modality: Modality | None = None, *, now_s: float
    ) -> Job | None:
        """Hide a job, forget its prompt, stop it if it is not over; None if there is no such job.

        Its artifacts' bytes are the caller's to remove; a runner that still holds the job cannot
        publish any more.
        """
        statement = (
            update(JOBS)
            .where(*_owned(job, tenant), *_shown(modality))
            .values(
                deleted_s=now_s,
                cancel_requested=case((JOBS.c.status.in_(ACTIVE), True), else_=False),
                finished_s=case((_WAITING, now_s), else_=JOBS.c.finished_s),
                status=case((_WAITING, JobStatus.CANCELLED.value), else_=JOBS.c.status),
            )
            .returning(*JOB_COLUMNS)
        )

        def work(connection: Connection) -> Job | None:
            found = job_of(connection, connection.execute(statement).one_or_none())
            if found is not None:
                key, bare = key_of(job), _without_words(found.request)
                connection.execute(delete(ARTIFACTS).where(ARTIFACTS.c.job_id == key))
                connection.execute(update(JOBS).where(JOBS.c.id == key).values(request=bare))
            return found

        return await self._database.write(work)

    async def request_cancel(self, job: JobId, tenant: TenantId, *, now_s: float) -> Job | None:
        """Cancel a waiting job at once, or mark a running one for its holder to stop.

        Returns the job as it is now, or None if there is nothing left to cancel.
        """
        return await self._database.write(
            lambda connection: _request_cancel(connection, job, tenant, now_s)
        )

    async def artifact(self, artifact: ArtifactId) -> StoredArtifact | None:
        """Return an artifact by id alone: whoever asks must have checked a signature."""
        if (key := key_of(artifact)) is None:
            return None

        def work(connection: Connection) -> StoredArtifact | None:
            statement = select(*ARTIFACT_COLUMNS).where(ARTIFACTS.c.id == key)
            row = connection.execute(statement).one_or_none()
            return None if row is None else artifact_of(row)

        return await self._database.read(work)


_ADD: Final = insert(JOBS)
_GET: Final = select(*JOB_COLUMNS).where(
    JOBS.c.id == bindparam("job"), JOBS.c.tenant == bindparam("owner")
)
_WAITING: Final = JOBS.c.status == JobStatus.QUEUED


def _beyond(statement: Select[Any], after: UUID | None, query: PageQuery) -> Select[Any]:
    if after is None:
        return statement
    return statement.where(JOBS.c.id < after if query.newest_first else JOBS.c.id > after)


def _request_cancel(
    connection: Connection, job: JobId, tenant: TenantId, now_s: float
) -> Job | None:
    statement = (
        update(JOBS)
        .where(*_owned(job, tenant), JOBS.c.status.in_(ACTIVE))
        .values(
            cancel_requested=True,
            finished_s=case((_WAITING, now_s), else_=None),
            status=case((_WAITING, JobStatus.CANCELLED.value), else_=JOBS.c.status),
        )
        .returning(*JOB_COLUMNS)
    )
    return job_of(connection, connection.execute(statement).one_or_none())


def _shown(modality: Modality | None) -> tuple[ColumnElement[bool], ...]:
    undeleted = JOBS.c.deleted_s.is_(None)
    return (undeleted,) if modality is None else (JOBS.c.modality == modality.value, undeleted)


def _owned(job: JobId, tenant: TenantId) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return JOBS.c.id == key_of(job), JOBS.c.tenant == tenant


def _without_words(request: GenerationRequest) -> str:
    return json_of(msgspec.structs.replace(request, prompt="", negative_prompt=None))
