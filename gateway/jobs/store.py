"""The job table as the API sees it: add, read, list, ask to cancel, delete.

The runner's side is leases.py.

Every read and every change made for a caller is scoped to the caller's tenant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from advanced_alchemy.repository import SQLAlchemyAsyncRepository
from sqlalchemy import ColumnElement, case, delete, func, select, update

from engine import GenerationRequest, Modality, StageTiming
from gateway.auth.principal import TenantId
from gateway.db.models import ArtifactRow, JobRow
from gateway.jobs.entry import Backlog, backlog, enter_alone, same_job
from gateway.jobs.record import (
    Job,
    JobError,
    JobId,
    KeptStage,
    NewJob,
    StageDecision,
    StoredArtifact,
    artifact_id_of,
    job_id_of,
    key_of,
)
from gateway.jobs.state import ACTIVE, JobStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncSession

    from gateway.db.session import Database
    from gateway.jobs.record import ArtifactId


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


class JobRepository(SQLAlchemyAsyncRepository[JobRow]):
    """Rows of jobs."""

    model_type = JobRow


class ArtifactRepository(SQLAlchemyAsyncRepository[ArtifactRow]):
    """Rows of artifacts."""

    model_type = ArtifactRow


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
        admit: Callable[[Backlog], None] = lambda _backlog: None,
    ) -> Job:
        """Write a queued job, or attach its caller to the job of an equal request.

        `admit` sees what would be before the job, and raises to refuse it.

        Raises:
            QueueFullError: `queue_limit` jobs are waiting.
            KeyReusedError: the idempotency key belongs to another request.
        """
        async with self._database.writing() as session:
            await enter_alone(session)
            if (same := await same_job(session, new, now_s=now_s)) is not None:
                return job_of(same)
            earlier = JobRow.deadline_s <= new.request.deadline_s
            before = await backlog(session, earlier)
            if before.waiting >= queue_limit:
                raise QueueFullError(before)
            admit(before)
            return job_of(await JobRepository(session=session).add(_row_of(new)))

    async def backlog(self, job: Job) -> Backlog:
        """Return what is before a waiting job; of a running one, what runs beside it."""
        deadline_s, key = job.request.deadline_s, key_of(job.id)
        earlier = (JobRow.deadline_s < deadline_s) | (
            (JobRow.deadline_s == deadline_s) & (JobRow.id < key)
        )
        async with self._database.reading() as session:
            return await backlog(session, earlier, but=key)

    async def census(self) -> dict[JobStatus, int]:
        """Return how many jobs of all tenants are in each state that is not terminal."""
        statement = select(JobRow.status, func.count()).group_by(JobRow.status)
        async with self._database.reading() as session:
            rows = await session.execute(statement.where(JobRow.status.in_(ACTIVE)))
            found = {JobStatus(status): int(count) for status, count in rows}
        return {status: found.get(status, 0) for status in sorted(ACTIVE)}

    async def leave(self, job: JobId, tenant: TenantId, *, now_s: float) -> Job | None:
        """Note that a caller waits no longer; the last one's leaving cancels the job.

        Returns the job as it is now if that cancelled it.
        """
        statement = (
            update(JobRow)
            .where(*_owned(job, tenant), JobRow.status.in_(ACTIVE))
            .values(waiters=JobRow.waiters - 1)
            .returning(JobRow.waiters)
        )
        async with self._database.writing() as session:
            waiters = (await session.scalars(statement)).one_or_none()
            if waiters is None or waiters > 0:
                return None
            return await _request_cancel(session, job, tenant, now_s)

    async def get(self, job: JobId, tenant: TenantId) -> Job | None:
        """Return the tenant's job, or None if the tenant has no such job."""
        async with self._database.reading() as session:
            jobs = JobRepository(session=session)
            row = await jobs.get_one_or_none(*_owned(job, tenant))
            return None if row is None else job_of(row)

    async def find(
        self, job: JobId, tenant: TenantId, modality: Modality | None = None
    ) -> Job | None:
        """Return the tenant's job (of this kind), or None if there is none or it was deleted."""
        statement = select(JobRow).where(*_owned(job, tenant), *_shown(modality))
        async with self._database.reading() as session:
            row = (await session.scalars(statement)).one_or_none()
            return None if row is None else job_of(row)

    async def page(self, query: PageQuery) -> list[Job]:
        """Return jobs in the order they were made, which is the order of their keys.

        `after` need not exist any more: a caller may delete what it lists.
        """
        statement = select(JobRow).where(JobRow.tenant == query.tenant, *_shown(query.modality))
        if query.after is not None:
            key = key_of(query.after)
            statement = statement.where(JobRow.id < key if query.newest_first else JobRow.id > key)
        if query.status is not None:
            statement = statement.where(JobRow.status == query.status.value)
        order = JobRow.id.desc() if query.newest_first else JobRow.id.asc()
        async with self._database.reading() as session:
            rows = await session.scalars(statement.order_by(order).limit(query.limit))
            return [job_of(row) for row in rows]

    async def delete(
        self, job: JobId, tenant: TenantId, modality: Modality | None = None, *, now_s: float
    ) -> Job | None:
        """Hide a job, forget its prompt, stop it if it is not over; None if there is no such job.

        Its artifacts' bytes are the caller's to remove; a runner that still holds the job cannot
        publish any more.
        """
        statement = (
            update(JobRow)
            .where(*_owned(job, tenant), *_shown(modality))
            .values(
                deleted_s=now_s,
                cancel_requested=case((JobRow.status.in_(ACTIVE), True), else_=False),
                finished_s=case((_WAITING, now_s), else_=JobRow.finished_s),
                status=case((_WAITING, JobStatus.CANCELLED.value), else_=JobRow.status),
            )
            .returning(JobRow)
        )
        async with self._database.writing() as session:
            row = (await session.scalars(statement)).one_or_none()
            if row is None:
                return None
            found = job_of(row)
            await session.execute(delete(ArtifactRow).where(ArtifactRow.job_id == row.id))
            row.request = _without_words(found.request)
            return found

    async def request_cancel(self, job: JobId, tenant: TenantId, *, now_s: float) -> Job | None:
        """Cancel a waiting job at once, or mark a running one for its holder to stop.

        Returns the job as it is now, or None if there is nothing left to cancel.
        """
        async with self._database.writing() as session:
            return await _request_cancel(session, job, tenant, now_s)

    async def artifact(self, artifact: ArtifactId) -> StoredArtifact | None:
        """Return an artifact by id alone: whoever asks must have checked a signature."""
        key = key_of(artifact)
        if key is None:
            return None
        async with self._database.reading() as session:
            row = await session.scalar(select(ArtifactRow).where(ArtifactRow.id == key))
            return None if row is None else _artifact_of(row)


_WAITING: Final = JobRow.status == JobStatus.QUEUED


async def _request_cancel(
    session: AsyncSession, job: JobId, tenant: TenantId, now_s: float
) -> Job | None:
    statement = (
        update(JobRow)
        .where(*_owned(job, tenant), JobRow.status.in_(ACTIVE))
        .values(
            cancel_requested=True,
            finished_s=case((_WAITING, now_s), else_=None),
            status=case((_WAITING, JobStatus.CANCELLED.value), else_=JobRow.status),
        )
        .returning(JobRow)
    )
    row = (await session.scalars(statement)).one_or_none()
    return None if row is None else job_of(row)


def _shown(modality: Modality | None) -> tuple[ColumnElement[bool], ...]:
    undeleted = JobRow.deleted_s.is_(None)
    return (undeleted,) if modality is None else (JobRow.modality == modality.value, undeleted)


def _owned(job: JobId, tenant: TenantId) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return JobRow.id == key_of(job), JobRow.tenant == tenant


def _row_of(new: NewJob) -> JobRow:
    return JobRow(
        id=key_of(new.id),
        tenant=new.tenant,
        model=new.request.model,
        modality=new.request.media.modality.value,
        status=JobStatus.QUEUED.value,
        request=msgspec.json.encode(new.request).decode(),
        request_id=new.request_id,
        traceparent=new.traceparent,
        deadline_s=new.request.deadline_s,
        expires_at_s=new.expires_at_s,
        predicted_s=new.predicted_s,
        work_s=new.work_s,
        waiters=new.waiters,
        idempotency_key=new.key,
        fingerprint=new.fingerprint,
        retry_count=new.retry_count,
        artifacts=[],
    )


def _without_words(request: GenerationRequest) -> str:
    bare = msgspec.structs.replace(request, prompt="", negative_prompt=None)
    return msgspec.json.encode(bare).decode()


def job_of(row: JobRow) -> Job:
    """Return the frozen record of a row."""
    return Job(
        id=job_id_of(row.id),
        tenant=TenantId(row.tenant),
        status=JobStatus(row.status),
        request=msgspec.json.decode(row.request, type=GenerationRequest),
        request_id=row.request_id,
        traceparent=row.traceparent,
        attempts=row.attempts,
        cancel_requested=row.cancel_requested,
        started_s=row.started_s,
        finished_s=row.finished_s,
        progress=row.progress,
        error=None if row.error is None else msgspec.json.decode(row.error, type=JobError),
        timeline=msgspec.json.decode(row.timeline or "[]", type=tuple[StageTiming, ...]),
        artifacts=tuple(_artifact_of(artifact) for artifact in row.artifacts),
        expires_at_s=row.expires_at_s,
        predicted_s=row.predicted_s,
        work_s=row.work_s,
        waiters=row.waiters,
        kept=msgspec.json.decode(row.checkpoint or "[]", type=tuple[KeptStage, ...]),
        schedule=msgspec.json.decode(row.schedule or "[]", type=tuple[StageDecision, ...]),
        content_removed_s=row.content_removed_s,
        content_expires_s=row.expires_at_s if row.status == JobStatus.COMPLETED else None,
    )


def _artifact_of(row: ArtifactRow) -> StoredArtifact:
    return StoredArtifact(
        id=artifact_id_of(row.id),
        index=row.index_in_job,
        blob=row.blob,
        media_type=row.media_type,
        width_px=row.width_px,
        height_px=row.height_px,
        size_bytes=row.size_bytes,
        seed=int(row.seed),
        sha256=row.sha256,
    )
