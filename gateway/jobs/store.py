"""The job table as the API sees it: add, read, ask to cancel. The runner's side is leases.py.

Every read and every change made for a caller is scoped to the caller's tenant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from advanced_alchemy.repository import SQLAlchemyAsyncRepository
from sqlalchemy import ColumnElement, case, select, update

from engine import GenerationRequest, StageTiming
from gateway.auth.principal import TenantId
from gateway.db.models import ArtifactRow, JobRow
from gateway.jobs.record import (
    Job,
    JobError,
    JobId,
    NewJob,
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

    async def request_cancel(self, job: JobId, tenant: TenantId, *, now_s: float) -> Job | None:
        """Cancel a waiting job at once, or mark a running one for its holder to stop.

        Returns the job as it is now, or None if there is nothing left to cancel.
        """
        waiting = JobRow.status == JobStatus.QUEUED
        statement = (
            update(JobRow)
            .where(*_owned(job, tenant), JobRow.status.in_(ACTIVE))
            .values(
                cancel_requested=True,
                finished_s=case((waiting, now_s), else_=None),
                status=case((waiting, JobStatus.CANCELLED.value), else_=JobRow.status),
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


def _owned(job: JobId, tenant: TenantId) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return JobRow.id == key_of(job), JobRow.tenant == tenant


def _row_of(new: NewJob) -> JobRow:
    return JobRow(
        id=key_of(new.id),
        tenant=new.tenant,
        model=new.request.model,
        status=JobStatus.QUEUED.value,
        request=msgspec.json.encode(new.request).decode(),
        request_id=new.request_id,
        traceparent=new.traceparent,
        deadline_s=new.request.deadline_s,
        expires_at_s=new.expires_at_s,
        artifacts=[],
    )


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
        error=None if row.error is None else msgspec.json.decode(row.error, type=JobError),
        timeline=msgspec.json.decode(row.timeline or "[]", type=tuple[StageTiming, ...]),
        artifacts=tuple(_artifact_of(artifact) for artifact in row.artifacts),
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
