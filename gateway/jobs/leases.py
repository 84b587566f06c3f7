"""The job table as a runner sees it: a queue whose entries are leased, never popped.

A holder must renew its leases; what it fails to renew goes back to the queue. Each change is one
conditional UPDATE that also asks for the holder's name, so a runner that lost a job without
noticing cannot overwrite what its successor made.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import func, or_, select, update

from gateway.db.models import ArtifactRow, JobRow
from gateway.jobs.record import (
    Job,
    JobError,
    JobId,
    KeptStage,
    StageDecision,
    StoredArtifact,
    job_id_of,
    key_of,
)
from gateway.jobs.state import JobStatus, lost_its_holder, sources
from gateway.jobs.store import job_of

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from engine import StageTiming
    from gateway.db.session import Database

MAX_ATTEMPTS: Final = 3
_NO_LEASE: Final = {"lease_owner": None, "lease_until_s": None}


class Renewal(msgspec.Struct, frozen=True):
    """What a runner still holds, and which of it should stop."""

    held: frozenset[JobId]
    to_cancel: frozenset[JobId]


class JobLeases:
    """Leases of one runner, known to the table as `owner`."""

    def __init__(
        self,
        database: Database,
        owner: str,
        *,
        lease_s: float = 30.0,
        retention_s: float = 7 * 86_400.0,
    ) -> None:
        """Lease for `lease_s` seconds at a time; keep what jobs made for `retention_s`."""
        self._database = database
        self.owner = owner
        self.lease_s = lease_s
        self._retention_s = retention_s

    async def take(self, limit: int, *, models: Sequence[str], now_s: float) -> list[Job]:
        """Lease up to `limit` waiting jobs of `models`, earliest deadline first."""
        waiting = (
            select(JobRow.id)
            .where(JobRow.status == JobStatus.QUEUED, JobRow.model.in_(models))
            .order_by(JobRow.deadline_s, JobRow.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
            # PostgreSQL may run a mere subquery once per row, and then lease more than `limit`.
            .cte("waiting")
            .prefix_with("MATERIALIZED")
        )
        statement = (
            update(JobRow)
            .where(JobRow.id.in_(select(waiting.c.id)))
            .values(
                status=JobStatus.IN_PROGRESS.value,
                attempts=JobRow.attempts + 1,
                started_s=func.coalesce(JobRow.started_s, now_s),
                lease_owner=self.owner,
                lease_until_s=now_s + self.lease_s,
            )
            .returning(JobRow)
        )
        async with self._database.writing() as session:
            jobs = [job_of(row) for row in await session.scalars(statement)]
        return sorted(jobs, key=lambda job: (job.request.deadline_s, job.id))

    async def renew(self, running: Collection[JobId], *, now_s: float) -> Renewal:
        """Extend the leases of what really runs; anything else runs out and is recovered."""
        if not running:
            return Renewal(held=frozenset(), to_cancel=frozenset())
        statement = (
            update(JobRow)
            .where(*self._mine(), JobRow.id.in_([key_of(job) for job in running]))
            .values(lease_until_s=now_s + self.lease_s)
            .returning(JobRow.id, JobRow.cancel_requested)
        )
        async with self._database.writing() as session:
            rows = [(job_id_of(key), cancel) for key, cancel in await session.execute(statement)]
        return Renewal(
            held=frozenset(job for job, _ in rows),
            to_cancel=frozenset(job for job, cancel in rows if cancel),
        )

    async def to_cancel(self) -> frozenset[JobId]:
        """Return which of this runner's jobs should stop."""
        wanted = select(JobRow.id).where(*self._mine(), JobRow.cancel_requested.is_(True))
        async with self._database.reading() as session:
            return frozenset(job_id_of(key) for key in await session.scalars(wanted))

    async def complete(
        self,
        job: Job,
        artifacts: Sequence[StoredArtifact],
        timeline: Sequence[StageTiming],
        *,
        now_s: float,
        schedule: Sequence[StageDecision] = (),
    ) -> bool:
        """Record a job's outputs; False if this runner no longer holds it or it was deleted."""
        values: dict[str, Any] = {"timeline": _json(timeline), "finished_s": now_s}
        if schedule:
            values["schedule"] = _json(schedule)
        rows = [_artifact_row(job, artifact) for artifact in artifacts]
        return await self._settle(job, JobStatus.COMPLETED, values, rows)

    async def keep(
        self, job: Job, kept: Sequence[KeptStage], schedule: Sequence[StageDecision]
    ) -> None:
        """Write down which finished stages are kept, and what was decided; if still held."""
        values = {"checkpoint": _json(kept), "schedule": _json(schedule)}
        await self._note(job.id, values)

    async def note_schedule(self, job: JobId, schedule: Sequence[StageDecision]) -> None:
        """Write down what was decided about a job's stages; if it is still held."""
        await self._note(job, {"schedule": _json(schedule)})

    async def _note(self, job: JobId, values: dict[str, Any]) -> None:
        statement = update(JobRow).where(*self._mine(), JobRow.id == key_of(job))
        async with self._database.writing() as session:
            await session.execute(statement.values(**values))

    async def note_progress(self, percents: Mapping[JobId, int]) -> None:
        """Write down how far jobs of this runner are; what is written never falls."""
        async with self._database.writing() as session:
            for job, percent in percents.items():
                statement = update(JobRow).where(
                    *self._mine(), JobRow.id == key_of(job), JobRow.progress < percent
                )
                await session.execute(statement.values(progress=percent))

    async def fail(self, job: Job, error: JobError, *, now_s: float) -> bool:
        """Record why a job failed; False if this runner no longer holds it."""
        values = {"error": _json(error), "finished_s": now_s}
        return await self._settle(job, JobStatus.FAILED, values)

    async def cancel(self, job: Job, *, now_s: float) -> bool:
        """Record that a job was stopped on request; False if this runner no longer holds it."""
        return await self._settle(job, JobStatus.CANCELLED, {"finished_s": now_s})

    async def give_back(self, job: Job, *, counted: bool = False) -> bool:
        """Queue a job again; the try does not count unless the job may be at fault."""
        values = {} if counted else {"attempts": JobRow.attempts - 1}
        return await self._settle(job, JobStatus.QUEUED, values)

    async def give_all_back(self) -> list[JobId]:
        """Queue again whatever this runner still holds; returns which jobs that were."""
        statement = (
            update(JobRow)
            .where(*self._mine())
            .values(status=JobStatus.QUEUED.value, attempts=JobRow.attempts - 1, **_NO_LEASE)
            .returning(JobRow.id)
        )
        async with self._database.writing() as session:
            return [job_id_of(key) for key in await session.scalars(statement)]

    async def recover(self, *, now_s: float) -> list[Job]:
        """Take jobs from holders that died, and expire those whose time is over.

        Returns the jobs that changed, as they are now.
        """
        overdue = select(JobRow).where(
            or_(
                (JobRow.status == JobStatus.IN_PROGRESS) & (JobRow.lease_until_s < now_s),
                (JobRow.status == JobStatus.QUEUED) & (JobRow.expires_at_s < now_s),
            )
        )
        async with self._database.writing() as session:
            rows = (await session.scalars(overdue.with_for_update(skip_locked=True))).all()
            for row in rows:
                _recover(row, now_s)
                if row.finished_s is not None:
                    row.expires_at_s = row.finished_s + self._retention_s
            return [job_of(row) for row in rows]

    def _mine(self) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
        return JobRow.lease_owner == self.owner, JobRow.status == JobStatus.IN_PROGRESS

    def _ending(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what changes besides when a job is over: nothing is kept, and the files expire."""
        if (finished_s := values.get("finished_s")) is None:
            return {}
        return {"checkpoint": None, "expires_at_s": finished_s + self._retention_s}

    async def _settle(
        self,
        job: Job,
        status: JobStatus,
        values: dict[str, Any],  # column values, as SQLAlchemy takes them
        artifacts: Sequence[ArtifactRow] = (),
    ) -> bool:
        statement = (
            update(JobRow)
            .where(
                JobRow.id == key_of(job.id),
                JobRow.lease_owner == self.owner,
                JobRow.status.in_(sources(status)),
                *_undeleted(status),
            )
            .values(status=status.value, **_NO_LEASE, **self._ending(values), **values)
            .returning(JobRow.id)
        )
        async with self._database.writing() as session:
            held = (await session.scalars(statement)).one_or_none() is not None
            if held:
                session.add_all(artifacts)
            return held


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _undeleted(status: JobStatus) -> tuple[ColumnElement[bool], ...]:
    """Only what its owner has not deleted can complete: nobody could remove the bytes later."""
    return (JobRow.deleted_s.is_(None),) if status is JobStatus.COMPLETED else ()


def _recover(row: JobRow, now_s: float) -> None:
    if row.expires_at_s < now_s:
        status = JobStatus.EXPIRED
    else:
        status = lost_its_holder(
            attempts=row.attempts,
            max_attempts=MAX_ATTEMPTS,
            cancel_requested=row.cancel_requested,
        )
    row.status = status.value
    row.lease_owner = row.lease_until_s = None
    row.finished_s = None if status is JobStatus.QUEUED else now_s
    if status is JobStatus.FAILED:
        message = (
            f"Job {job_id_of(row.id)} was given up after {row.attempts} attempts: each time the "
            "process that ran it died. Look for the cause in the server's log."
        )
        row.error = _json(JobError("attempts_exhausted", message))


def _artifact_row(job: Job, artifact: StoredArtifact) -> ArtifactRow:
    return ArtifactRow(
        id=key_of(artifact.id),
        job_id=key_of(job.id),
        tenant=job.tenant,
        index_in_job=artifact.index,
        blob=artifact.blob,
        media_type=artifact.media_type,
        width_px=artifact.width_px,
        height_px=artifact.height_px,
        size_bytes=artifact.size_bytes,
        seed=str(artifact.seed),
        sha256=artifact.sha256,
    )
