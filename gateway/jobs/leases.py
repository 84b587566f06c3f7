"""The job table as a runner sees it: a queue whose entries are leased, never popped.

A holder must renew its leases; what it fails to renew goes back to the queue. Each change is one
conditional UPDATE that also asks for the holder's name, so a runner that lost a job without
noticing cannot overwrite what its successor made. None of them waits for the disk: what a power cut
takes back is a job that is leased, and run, once more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import Float, bindparam, func, insert, literal, or_, select, update

from gateway.jobs.record import (
    Job,
    JobError,
    JobId,
    KeptStage,
    Lease,
    StageDecision,
    StoredArtifact,
    fruitless,
    job_id_of,
    key_of,
)
from gateway.jobs.rows import (
    ARTIFACTS,
    JOB_COLUMNS,
    JOBS,
    completed_job_of,
    is_one_of,
    json_of,
    output_values,
    readable_jobs_of,
    readable_kept_of,
)
from gateway.jobs.state import JobStatus, lost_its_holder, sources

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection, Row
    from sqlalchemy.sql.dml import ReturningUpdate

    from engine import StageTiming
    from gateway.db.session import Database

MAX_ATTEMPTS: Final = 3  # since a stage was last finished: one that kills its process ends there
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

    def lease(self, *, now_s: float) -> Lease:
        """Return what a job is leased with that begins now."""
        return Lease(self.owner, now_s, now_s + self.lease_s)

    async def take(self, limit: int, *, models: Sequence[str], now_s: float) -> list[Job]:
        """Lease up to `limit` waiting jobs of `models`, earliest deadline first.

        One that this version cannot read is left to its lease, and so to the next engine or its end.
        """
        values = {
            "at_most": limit,
            "holder": self.owner,
            "now": now_s,
            "until": now_s + self.lease_s,
        }
        jobs = await self._database.write(
            lambda connection: readable_jobs_of(
                connection, connection.execute(_taking(tuple(models)), values).all()
            ),
            sync=False,
        )
        return sorted(jobs, key=lambda job: (job.request.deadline_s, job.id))

    async def renew(self, running: Collection[JobId], *, now_s: float) -> Renewal:
        """Extend the leases of what really runs; anything else runs out and is recovered."""
        if not running:
            return Renewal(held=frozenset(), to_cancel=frozenset())
        statement = (
            update(JOBS)
            .where(*self._mine(), JOBS.c.id.in_([key_of(job) for job in running]))
            .values(lease_until_s=now_s + self.lease_s)
            .returning(JOBS.c.id, JOBS.c.cancel_requested)
        )

        def work(connection: Connection) -> list[tuple[JobId, bool]]:
            return [(job_id_of(key), cancel) for key, cancel in connection.execute(statement)]

        rows = await self._database.write(work, sync=False)
        return Renewal(
            held=frozenset(job for job, _ in rows),
            to_cancel=frozenset(job for job, cancel in rows if cancel),
        )

    async def to_cancel(self) -> frozenset[JobId]:
        """Return which of this runner's jobs should stop."""
        wanted = select(JOBS.c.id).where(*self._mine(), JOBS.c.cancel_requested.is_(True))
        return await self._database.read(
            lambda connection: frozenset(job_id_of(key) for key in connection.scalars(wanted))
        )

    async def complete(
        self,
        job: Job,
        artifacts: Sequence[StoredArtifact],
        timeline: Sequence[StageTiming],
        *,
        now_s: float,
        schedule: Sequence[StageDecision] = (),
    ) -> Job | None:
        """Record a job's outputs, and return the job as it is now.

        None if this runner no longer holds it or it was deleted.
        """
        values: dict[str, Any] = {"timeline": json_of(timeline), "finished_s": now_s}
        if schedule:
            values["schedule"] = json_of(schedule)
        outputs = [output_values(job, artifact) for artifact in artifacts]

        def work(connection: Connection) -> Job | None:
            row = self._settle(connection, job, JobStatus.COMPLETED, values)
            if row is None:
                return None
            if outputs:
                connection.execute(_ADD_OUTPUTS, outputs)
            return completed_job_of(row, artifacts)

        return await self._database.write(work, sync=False)

    async def keep(
        self, job: Job, kept: Sequence[KeptStage], schedule: Sequence[StageDecision]
    ) -> None:
        """Write down which finished stages are kept, and what was decided; if still held."""
        values = {"checkpoint": json_of(kept), "schedule": json_of(schedule)}
        await self._note(job.id, values)

    async def note_schedule(self, job: JobId, schedule: Sequence[StageDecision]) -> None:
        """Write down what was decided about a job's stages; if it is still held."""
        await self._note(job, {"schedule": json_of(schedule)})

    async def _note(self, job: JobId, values: dict[str, Any]) -> None:
        statement = update(JOBS).where(*self._mine(), JOBS.c.id == key_of(job)).values(**values)
        await self._database.execute(statement, sync=False)

    async def note_progress(self, percents: Mapping[JobId, int]) -> None:
        """Write down how far jobs of this runner are; what is written never falls."""
        statements = [
            update(JOBS)
            .where(*self._mine(), JOBS.c.id == key_of(job), JOBS.c.progress < percent)
            .values(progress=percent)
            for job, percent in percents.items()
        ]
        await self._database.execute(*statements, sync=False)

    async def fail(self, job: Job, error: JobError, *, now_s: float) -> bool:
        """Record why a job failed; False if this runner no longer holds it."""
        values = {"error": json_of(error), "finished_s": now_s}
        return await self._end(job, JobStatus.FAILED, values)

    async def cancel(self, job: Job, *, now_s: float) -> bool:
        """Record that a job was stopped on request; False if this runner no longer holds it."""
        return await self._end(job, JobStatus.CANCELLED, {"finished_s": now_s})

    async def give_back(self, job: Job, *, now_s: float, counted: bool = False) -> JobStatus:
        """Queue a job again, or end it if that was asked for; return what became of it.

        The try does not count unless the job may be at fault.
        """
        queued = {} if counted else {"attempts": job.attempts - 1}
        cancelled = {"finished_s": now_s}

        def work(connection: Connection) -> JobStatus:
            is_queued = self._settle(connection, job, JobStatus.QUEUED, queued) is not None
            if not is_queued and self._settle(connection, job, JobStatus.CANCELLED, cancelled):
                return JobStatus.CANCELLED
            return JobStatus.QUEUED  # or it was not ours any more, and somebody else's business

        return await self._database.write(work, sync=False)

    async def give_all_back(self) -> list[JobId]:
        """Queue again whatever this runner still holds; returns which jobs that were."""
        statement = (
            update(JOBS)
            .where(*self._mine())
            .values(status=JobStatus.QUEUED.value, attempts=JOBS.c.attempts - 1, **_NO_LEASE)
            .returning(JOBS.c.id)
        )
        return await self._database.write(
            lambda connection: [job_id_of(key) for key in connection.scalars(statement)]
        )

    async def recover(self, *, now_s: float) -> list[Job]:
        """Take jobs from holders that died, and expire those whose time is over.

        Returns the jobs that changed, as they are now.
        """
        overdue = select(*JOB_COLUMNS).where(
            or_(
                (JOBS.c.status == JobStatus.IN_PROGRESS) & (JOBS.c.lease_until_s < now_s),
                (JOBS.c.status == JobStatus.QUEUED) & (JOBS.c.expires_at_s < now_s),
            )
        )

        def work(connection: Connection) -> list[Job]:
            rows = connection.execute(overdue.with_for_update(skip_locked=True)).all()
            changed = [
                connection.execute(
                    update(JOBS)
                    .where(JOBS.c.id == row.id)
                    .values(**_recovered(row, now_s, retention_s=self._retention_s))
                    .returning(*JOB_COLUMNS)
                ).one()
                for row in rows
            ]
            return readable_jobs_of(connection, changed)

        return await self._database.write(work)

    def _mine(self) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
        return JOBS.c.lease_owner == self.owner, JOBS.c.status == JobStatus.IN_PROGRESS

    def _ending(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what changes besides when a job is over: nothing is kept, and the files expire."""
        if (finished_s := values.get("finished_s")) is None:
            return {}
        return {"checkpoint": None, "expires_at_s": finished_s + self._retention_s}

    async def _end(self, job: Job, status: JobStatus, values: Mapping[str, Any]) -> bool:
        row = await self._database.write(
            lambda connection: self._settle(connection, job, status, values), sync=False
        )
        return row is not None

    def _settle(
        self, connection: Connection, job: Job, status: JobStatus, values: Mapping[str, Any]
    ) -> Row[*tuple[Any, ...]] | None:
        """Change a job that is held, by its columns; return its row, None if it is not held."""
        values = {**_NO_LEASE, **self._ending(values), **values, "status": status.value}
        ours = {"the_job": key_of(job.id), "holder": self.owner}
        statement = _settling(status, tuple(values))
        return connection.execute(statement, values | ours).one_or_none()


_ADD_OUTPUTS: Final = insert(ARTIFACTS)


@cache
def _settling(status: JobStatus, columns: tuple[str, ...]) -> ReturningUpdate[Any]:
    """Return the change of a job that is held into `status`; takes the values of `columns`."""
    return (
        update(JOBS)
        .where(
            JOBS.c.id == bindparam("the_job"),
            JOBS.c.lease_owner == bindparam("holder"),
            is_one_of(sources(status)),
            *_still_wanted(status),
        )
        .values({name: bindparam(name) for name in columns})
        .returning(*JOB_COLUMNS)
    )


def _still_wanted(status: JobStatus) -> tuple[ColumnElement[bool], ...]:
    """What its owner must not have done meanwhile: nobody could remove a deleted job's bytes later."""
    match status:
        case JobStatus.COMPLETED:
            return (JOBS.c.deleted_s.is_(None),)
        case JobStatus.QUEUED:
            return (JOBS.c.cancel_requested.is_(False),)
        case _:
            return ()


def _recovered(row: Row[*tuple[Any, ...]], now_s: float, *, retention_s: float) -> dict[str, Any]:
    """Return what changes in a row whose time is over, or whose holder has died."""
    if row.expires_at_s < now_s:
        status = JobStatus.EXPIRED
    else:
        status = lost_its_holder(
            attempts=fruitless(row.attempts, readable_kept_of(row)),
            max_attempts=MAX_ATTEMPTS,
            cancel_requested=row.cancel_requested,
        )
    values = {**_NO_LEASE, "status": status.value}
    if status is JobStatus.QUEUED:
        return {**values, "finished_s": None}
    if status is JobStatus.FAILED:
        message = (
            f"Job {job_id_of(row.id)} was given up after {row.attempts} attempts: in the last "
            f"{MAX_ATTEMPTS} the process that ran it died before a stage was finished. Look for the "
            "cause in the server's log."
        )
        values["error"] = json_of(JobError("attempts_exhausted", message))
    return {**values, "finished_s": now_s, "expires_at_s": now_s + retention_s}


@cache
def _taking(models: tuple[str, ...]) -> ReturningUpdate[Any]:
    waiting = (
        select(JOBS.c.id)
        .where(
            JOBS.c.status == JobStatus.QUEUED,
            JOBS.c.model.in_([literal(model) for model in models]),
        )
        .order_by(JOBS.c.deadline_s, JOBS.c.id)
        .limit(bindparam("at_most"))
        .with_for_update(skip_locked=True)
        # PostgreSQL may run a mere subquery once per row, and then lease more than the limit.
        .cte("waiting")
        .prefix_with("MATERIALIZED")
    )
    return (
        update(JOBS)
        .where(JOBS.c.id.in_(select(waiting.c.id)))
        .values(
            status=JobStatus.IN_PROGRESS.value,
            attempts=JOBS.c.attempts + 1,
            started_s=func.coalesce(JOBS.c.started_s, bindparam("now", type_=Float)),
            lease_owner=bindparam("holder"),
            lease_until_s=bindparam("until"),
        )
        .returning(*JOB_COLUMNS)
    )
