"""What is asked of the job table before a job is added: is it there already, and is there room?

Both are asked in the transaction that adds the job, which on PostgreSQL takes a lock that all
processes share: of two equal requests that come at once to two gateways, one makes the job.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec
from sqlalchemy import case, func, or_, select, text

from gateway.db.models import JobRow
from gateway.jobs.state import ACTIVE, JobStatus

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncSession

    from gateway.jobs.record import NewJob

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


async def enter_alone(session: AsyncSession) -> None:
    """Let one transaction at a time add jobs; SQLite has one writer anyway."""
    if session.get_bind().dialect.name == "postgresql":
        await session.execute(text(f"SELECT pg_advisory_xact_lock({_ENTRY_LOCK})"))


async def backlog(
    session: AsyncSession, before: ColumnElement[bool], *, but: UUID | None = None
) -> Backlog:
    """Return what waits, and what of it is `before` a job, which itself is left out."""
    waits = JobRow.status == JobStatus.QUEUED
    counts = or_(JobRow.status == JobStatus.IN_PROGRESS, before)
    left_s = func.coalesce(JobRow.work_s, 0.0) * (100 - JobRow.progress) / 100
    statement = select(
        func.coalesce(func.sum(case((waits, 1), else_=0)), 0),
        func.coalesce(func.sum(case((waits & before, 1), else_=0)), 0),
        func.coalesce(func.sum(case((counts, left_s), else_=0.0)), 0.0),
    ).where(JobRow.status.in_(ACTIVE))
    if but is not None:
        statement = statement.where(JobRow.id != but)
    waiting, ahead, work_s = (await session.execute(statement)).one()
    return Backlog(int(waiting), int(ahead), float(work_s))


async def same_job(session: AsyncSession, new: NewJob, *, now_s: float) -> JobRow | None:
    """Return the job that an equal request made before, with `new`'s caller attached to it.

    Raises:
        KeyReusedError: the key was used for another request.
    """
    row = await (_by_key(session, new, now_s) if new.key else _by_retry(session, new, now_s))
    if row is not None:
        row.waiters += new.waiters
        row.retry_count = max(row.retry_count, new.retry_count)
        await session.flush()
    return row


async def _by_key(session: AsyncSession, new: NewJob, now_s: float) -> JobRow | None:
    statement = select(JobRow).where(JobRow.tenant == new.tenant, JobRow.idempotency_key == new.key)
    row = await session.scalar(statement)
    if row is None:
        return None
    if row.created_at < _before(now_s, KEY_LIFE_S) or _was_given_up(row):
        row.idempotency_key = None
        await session.flush()
        return None
    if row.fingerprint != new.fingerprint:
        raise KeyReusedError
    return row


async def _by_retry(session: AsyncSession, new: NewJob, now_s: float) -> JobRow | None:
    """Find what an SDK asked for already: it sends no key, but counts its silent retries."""
    if not new.retry_count:
        return None
    statement = (
        select(JobRow)
        .where(
            JobRow.tenant == new.tenant,
            JobRow.fingerprint == new.fingerprint,
            JobRow.idempotency_key.is_(None),
            JobRow.retry_count < new.retry_count,
            JobRow.status != JobStatus.FAILED,
            JobRow.created_at >= _before(now_s, RETRY_LIFE_S),
        )
        .order_by(JobRow.id.desc())
    )
    rows = await session.scalars(statement.limit(10))
    return next((row for row in rows if not _was_given_up(row)), None)


def _was_given_up(row: JobRow) -> bool:
    """Whether nobody will ever get an answer from this job, so that a retry needs a new one."""
    over_for_nothing = row.status in {JobStatus.CANCELLED, JobStatus.EXPIRED}
    stopping = row.cancel_requested and row.status in ACTIVE
    is_gone = row.deleted_s is not None or row.content_removed_s is not None
    return over_for_nothing or stopping or is_gone


def _before(now_s: float, life_s: float) -> datetime:
    return datetime.fromtimestamp(now_s - life_s, UTC)
