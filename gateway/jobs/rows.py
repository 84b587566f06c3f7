"""Rows of jobs and artifacts: which columns are read, and what records they are.

Statements on these tables are built once and take parameters: building one costs more than SQLite
takes to run it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
import structlog
from sqlalchemy import Row, Table, bindparam, literal, select

from engine import GenerationRequest, StageTiming
from gateway.auth.principal import TenantId
from gateway.db.models import ArtifactRow, JobRow
from gateway.errors import UnreadableJobError
from gateway.jobs.record import (
    Job,
    JobError,
    KeptStage,
    Lease,
    NewJob,
    StageDecision,
    StoredArtifact,
    artifact_id_of,
    job_id_of,
    key_of,
)
from gateway.jobs.state import JobStatus

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy import ColumnElement, Connection

_log = structlog.get_logger(__name__)

# A mapped class's table is typed as anything that can be selected from.
JOBS: Final = cast("Table", JobRow.__table__)
ARTIFACTS: Final = cast("Table", ArtifactRow.__table__)
_UNREAD: Final = {"created_at", "updated_at", "sa_orm_sentinel"}
JOB_COLUMNS: Final = tuple(column for column in JOBS.c if column.name not in _UNREAD)
ARTIFACT_COLUMNS: Final = tuple(column for column in ARTIFACTS.c if column.name not in _UNREAD)

# A field or a value that this version has no word for; the latter of a status or a number.
_UNREADABLE: Final = (msgspec.MsgspecError, ValueError)

_OUTPUTS: Final = (
    select(*ARTIFACT_COLUMNS)
    .where(ARTIFACTS.c.job_id.in_(bindparam("jobs", expanding=True)))
    .order_by(ARTIFACTS.c.index_in_job)
)


def is_one_of(statuses: Collection[JobStatus]) -> ColumnElement[bool]:
    """Return the condition that a job has one of these statuses.

    A list of plain values would be written out anew whenever the statement runs.
    """
    return JOBS.c.status.in_([literal(status.value) for status in sorted(statuses)])


def jobs_of(connection: Connection, rows: Sequence[Row[*tuple[Any, ...]]]) -> list[Job]:
    """Return the records of rows, with the outputs of those that are completed."""
    completed = [row.id for row in rows if row.status == JobStatus.COMPLETED]
    outputs: defaultdict[UUID, list[StoredArtifact]] = defaultdict(list)
    if completed:
        for row in connection.execute(_OUTPUTS, {"jobs": completed}):
            outputs[row.job_id].append(artifact_of(row))
    return [_job_of(row, tuple(outputs[row.id])) for row in rows]


def readable_jobs_of(connection: Connection, rows: Sequence[Row[*tuple[Any, ...]]]) -> list[Job]:
    """Return the records of rows but for those that another version wrote and this cannot read.

    One of them must not keep everybody's jobs from being leased or swept.
    """
    with suppress(*_UNREADABLE):
        return jobs_of(connection, rows)
    jobs = []
    for row in rows:
        try:
            jobs += jobs_of(connection, [row])
        except _UNREADABLE as error:
            _log.error("job_unreadable", job_id=job_id_of(row.id), reason=str(error))
    return jobs


def job_of(connection: Connection, row: Row[*tuple[Any, ...]] | None) -> Job | None:
    """Return the record of a row, if there is one.

    Raises:
        UnreadableJobError: another version wrote it, in a way that this one cannot read.
    """
    if row is None:
        return None
    try:
        return jobs_of(connection, [row])[0]
    except _UNREADABLE as error:
        job = job_id_of(row.id)
        _log.error("job_unreadable", job_id=job, reason=str(error))
        raise UnreadableJobError(job) from error


def completed_job_of(row: Row[*tuple[Any, ...]], outputs: Sequence[StoredArtifact]) -> Job:
    """Return the record of a row whose job has just been completed with these outputs."""
    return _job_of(row, tuple(outputs))


def kept_of(row: Row[*tuple[Any, ...]]) -> tuple[KeptStage, ...]:
    """Return which finished stages a row names."""
    return _KEPT.decode(row.checkpoint) if row.checkpoint else ()


def readable_kept_of(row: Row[*tuple[Any, ...]]) -> tuple[KeptStage, ...]:
    """Return which finished stages a row names, none if another version wrote them unreadably."""
    with suppress(*_UNREADABLE):
        return kept_of(row)
    return ()


def values_of(new: NewJob, lease: Lease | None) -> dict[str, Any]:
    """Return the columns of a job on its way into the table, where it waits unless it is leased."""
    return {
        "id": key_of(new.id),
        "tenant": new.tenant,
        "model": new.request.model,
        "modality": new.request.media.modality.value,
        "status": (JobStatus.QUEUED if lease is None else JobStatus.IN_PROGRESS).value,
        "attempts": 0 if lease is None else 1,
        "started_s": None if lease is None else lease.since_s,
        "lease_owner": None if lease is None else lease.owner,
        "lease_until_s": None if lease is None else lease.until_s,
        "request": json_of(new.request),
        "request_id": new.request_id,
        "traceparent": new.traceparent,
        "deadline_s": new.request.deadline_s,
        "expires_at_s": new.expires_at_s,
        "predicted_s": new.predicted_s,
        "work_s": new.work_s,
        "waiters": new.waiters,
        "idempotency_key": new.key,
        "fingerprint": new.fingerprint,
        "retry_count": new.retry_count,
    }


def output_values(job: Job, artifact: StoredArtifact) -> dict[str, Any]:
    """Return the columns of an output on its way into the table."""
    return {
        "id": key_of(artifact.id),
        "job_id": key_of(job.id),
        "tenant": job.tenant,
        "index_in_job": artifact.index,
        "blob": artifact.blob,
        "media_type": artifact.media_type,
        "width_px": artifact.width_px,
        "height_px": artifact.height_px,
        "size_bytes": artifact.size_bytes,
        "seed": str(artifact.seed),
        "sha256": artifact.sha256,
    }


def artifact_of(row: Row[*tuple[Any, ...]]) -> StoredArtifact:
    """Return the record of an output."""
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


def json_of(value: object) -> str:
    """Return what a text column holds of a value that is read whole or not at all."""
    return msgspec.json.encode(value).decode()


def new_job_of(new: NewJob, lease: Lease | None = None) -> Job:
    """Return the record of a job that has just been added."""
    return Job(
        id=new.id,
        tenant=new.tenant,
        status=JobStatus.QUEUED if lease is None else JobStatus.IN_PROGRESS,
        request=new.request,
        request_id=new.request_id,
        traceparent=new.traceparent,
        attempts=0 if lease is None else 1,
        cancel_requested=False,
        started_s=None if lease is None else lease.since_s,
        finished_s=None,
        progress=0,
        error=None,
        timeline=(),
        artifacts=(),
        expires_at_s=new.expires_at_s,
        predicted_s=new.predicted_s,
        work_s=new.work_s,
        waiters=new.waiters,
    )


def _job_of(row: Row[*tuple[Any, ...]], artifacts: tuple[StoredArtifact, ...]) -> Job:
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
        timeline=_TIMELINE.decode(row.timeline) if row.timeline else (),
        artifacts=artifacts,
        expires_at_s=row.expires_at_s,
        predicted_s=row.predicted_s,
        work_s=row.work_s,
        waiters=row.waiters,
        kept=kept_of(row),
        schedule=_SCHEDULE.decode(row.schedule) if row.schedule else (),
        content_removed_s=row.content_removed_s,
        content_expires_s=row.expires_at_s if row.status == JobStatus.COMPLETED else None,
    )


_TIMELINE: Final = msgspec.json.Decoder(tuple[StageTiming, ...])
_KEPT: Final = msgspec.json.Decoder(tuple[KeptStage, ...])
_SCHEDULE: Final = msgspec.json.Decoder(tuple[StageDecision, ...])
