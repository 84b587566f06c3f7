"""What is asked of the job table before a job is added: is it there already, and is there room?

Both are asked in the transaction that adds the job, which on PostgreSQL takes a lock that all
processes share: of two equal requests that come at once to two gateways, one makes the job.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import bindparam, case, func, or_, select, text, update

from gateway.jobs.rows import JOB_COLUMNS, JOBS, is_one_of, job_of
from gateway.jobs.state import ACTIVE, JobStatus

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy import ColumnElement, Connection, CursorResult, Row, Select

    from gateway.jobs.record import Job, NewJob

KEY_LIFE_S: Final = 86_400.0
# The SDKs give up within half a minute; beyond that, an equal request is a new wish.
RETRY_LIFE_S: Final = 600.0
_ENTRY_LOCK: Final = 0x7472_6964  # any number that all our processes agree on


class KeyReusedError(Exception):
    """The idempotency key belongs to another request."""


class Backlog(msgspec.Struct, frozen=True):
    """What is before a job: waiting jobs in all and ahead of it, and device-seconds of work.

    Work is that of running jobs and of jobs that wait for an earlier deadline.
    """

    waiting: int
    ahead: int
    work_s: float


def enter_alone(connection: Connection) -> None:
    """Let one transaction at a time add jobs; SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_ENTRY_LOCK})"))


def backlog(
    connection: Connection, before: ColumnElement[bool], *, but: UUID | None = None
) -> Backlog:
    """Return what waits, and what of it is `before` a job, which itself is left out."""
    statement = _backlog(before)
    if but is not None:
        statement = statement.where(JOBS.c.id != but)
    return _counted(connection.execute(statement))


def backlog_before(connection: Connection, deadline_s: float) -> Backlog:
    """Return what would be before a new job with this deadline."""
    return _counted(connection.execute(_BEFORE_DEADLINE, {"deadline": deadline_s}))


def _backlog(before: ColumnElement[bool]) -> Select[Any]:
    waits = JOBS.c.status == JobStatus.QUEUED
    counts = or_(JOBS.c.status == JobStatus.IN_PROGRESS, before)
    left_s = func.coalesce(JOBS.c.work_s, 0.0) * (100 - JOBS.c.progress) / 100
    return select(
        func.coalesce(func.sum(case((waits, 1), else_=0)), 0),
        func.coalesce(func.sum(case((waits & before, 1), else_=0)), 0),
        func.coalesce(func.sum(case((counts, left_s), else_=0.0)), 0.0),
    ).where(is_one_of(ACTIVE))


_BEFORE_DEADLINE: Final = _backlog(JOBS.c.deadline_s <= bindparam("deadline"))


def _counted(result: CursorResult[*tuple[Any, ...]]) -> Backlog:
    waiting, ahead, work_s = result.one()
    return Backlog(int(waiting), int(ahead), float(work_s))


def same_job(connection: Connection, new: NewJob, *, now_s: float) -> Job | None:
    """Return the job that an equal request made before, with `new`'s caller attached to it.

    Raises:
        KeyReusedError: the key was used for another request.
    """
    find = _by_key if new.key else _by_retry
    row = find(connection, new, now_s)
    if row is None:
        return None
    attached = (
        update(JOBS)
        .where(JOBS.c.id == row.id)
        .values(
            waiters=row.waiters + new.waiters, retry_count=max(row.retry_count, new.retry_count)
        )
        .returning(*JOB_COLUMNS)
    )
    return job_of(connection, connection.execute(attached).one())


def _by_key(connection: Connection, new: NewJob, now_s: float) -> Row[*tuple[Any, ...]] | None:
    wanted = (JOBS.c.tenant == new.tenant, JOBS.c.idempotency_key == new.key)
    row = connection.execute(_FOUND.where(*wanted)).one_or_none()
    if row is None:
        return None
    if row.created_at < _before(now_s, KEY_LIFE_S) or _was_given_up(row):
        connection.execute(update(JOBS).where(*wanted).values(idempotency_key=None))
        return None
    if row.fingerprint != new.fingerprint:
        raise KeyReusedError
    return row


def _by_retry(connection: Connection, new: NewJob, now_s: float) -> Row[*tuple[Any, ...]] | None:
    """Find what an SDK asked for already: it sends no key, but counts its silent retries."""
    if not new.retry_count:
        return None
    # So written that SQLite looks in the index of fingerprints: not in that of keys, where all jobs
    # without one would be equal, nor in that of ids, because it is in the right order.
    statement = _FOUND.where(
        JOBS.c.tenant == new.tenant,
        JOBS.c.fingerprint == new.fingerprint,
        func.coalesce(JOBS.c.idempotency_key, "") == "",
        JOBS.c.retry_count < new.retry_count,
        JOBS.c.status != JobStatus.FAILED,
        JOBS.c.created_at >= _before(now_s, RETRY_LIFE_S),
    ).order_by(JOBS.c.created_at.desc())
    rows = connection.execute(statement.limit(10)).all()
    return next((row for row in rows if not _was_given_up(row)), None)


_FOUND: Final = select(*JOB_COLUMNS, JOBS.c.created_at)


def _was_given_up(row: Row[*tuple[Any, ...]]) -> bool:
    """Whether nobody will ever get an answer from this job, so that a retry needs a new one."""
    over_for_nothing = row.status in {JobStatus.CANCELLED, JobStatus.EXPIRED}
    stopping = row.cancel_requested and row.status in ACTIVE
    is_gone = row.deleted_s is not None or row.content_removed_s is not None
    return over_for_nothing or stopping or is_gone


def _before(now_s: float, life_s: float) -> datetime:
    return datetime.fromtimestamp(now_s - life_s, UTC)
