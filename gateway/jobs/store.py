"""The job table as the API sees it: add, read, list, ask to cancel, delete.

The runner's side is leases.py.

Every read and every change made for a caller is scoped to the caller's tenant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from advanced_alchemy.repository import SQLAlchemyAsyncRepository
from sqlalchemy import ColumnElement, case, delete, select, update

from engine import GenerationRequest, Modality, StageTiming
from gateway.auth.principal import TenantId
from gateway.db.models import ArtifactRow, JobRow
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
    from gateway.db.session import Database
    from gateway.jobs.record import ArtifactId


class QueueFullError(Exception):
    """As many jobs as may wait are waiting already."""


class PageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of a tenant's jobs to list: up to `limit` of them, beyond the job `after`."""

    tenant: TenantId
    modality: Modality
    limit: int
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

    async def add(self, new: NewJob, *, queue_limit: int) -> Job:
        """Write a queued job; raises `QueueFullError` if `queue_limit` jobs are waiting."""
        async with self._database.writing() as session:
            jobs = JobRepository(session=session)
            if await jobs.count(JobRow.status == JobStatus.QUEUED) >= queue_limit:
                raise QueueFullError
            return job_of(await jobs.add(_row_of(new)))

    async def get(self, job: JobId, tenant: TenantId) -> Job | None:
        """Return the tenant's job, or None if the tenant has no such job."""
        async with self._database.reading() as session:
            jobs = JobRepository(session=session)
            row = await jobs.get_one_or_none(*_owned(job, tenant))
            return None if row is None else job_of(row)

    async def find(self, job: JobId, tenant: TenantId, modality: Modality) -> Job | None:
        """Return the tenant's job of this kind, or None if there is none or it was deleted."""
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
        order = JobRow.id.desc() if query.newest_first else JobRow.id.asc()
        async with self._database.reading() as session:
            rows = await session.scalars(statement.order_by(order).limit(query.limit))
            return [job_of(row) for row in rows]

    async def delete(
        self, job: JobId, tenant: TenantId, modality: Modality, *, now_s: float
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
        async with self._database.writing() as session:
            row = (await session.scalars(statement)).one_or_none()
            return None if row is None else job_of(row)

    async def artifact(self, artifact: ArtifactId) -> StoredArtifact | None:
        """Return an artifact by id alone: whoever asks must have checked a signature."""
        key = key_of(artifact)
        if key is None:
            return None
        async with self._database.reading() as session:
            row = await session.scalar(select(ArtifactRow).where(ArtifactRow.id == key))
            return None if row is None else _artifact_of(row)


_WAITING: Final = JobRow.status == JobStatus.QUEUED


def _shown(modality: Modality) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return JobRow.modality == modality.value, JobRow.deleted_s.is_(None)


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
