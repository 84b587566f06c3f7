"""The state machine of a job: which status may follow which. Pure.

queued -> in_progress -> completed | failed | cancelled | expired
queued -> cancelled | expired | failed        in_progress -> queued (its holder gave up or died)
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class JobStatus(StrEnum):
    """Where a job is; the words are the ones clients see."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


TERMINAL: Final = frozenset(
    {JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.EXPIRED}
)
ACTIVE: Final = frozenset(JobStatus) - TERMINAL

_BEFORE: Final[Mapping[JobStatus, frozenset[JobStatus]]] = {
    JobStatus.QUEUED: frozenset({JobStatus.IN_PROGRESS}),
    JobStatus.IN_PROGRESS: frozenset({JobStatus.QUEUED}),
    JobStatus.COMPLETED: frozenset({JobStatus.IN_PROGRESS}),
    JobStatus.FAILED: ACTIVE,
    JobStatus.CANCELLED: ACTIVE,
    JobStatus.EXPIRED: ACTIVE,
}


def sources(status: JobStatus) -> frozenset[JobStatus]:
    """Return the statuses from which a job may become `status`: the WHERE of its UPDATE."""
    return _BEFORE[status]


def lost_its_holder(*, attempts: int, max_attempts: int, cancel_requested: bool) -> JobStatus:
    """Return what becomes of a job whose lease ran out after `attempts` tries without any gain."""
    if cancel_requested:
        return JobStatus.CANCELLED
    return JobStatus.QUEUED if attempts < max_attempts else JobStatus.FAILED
