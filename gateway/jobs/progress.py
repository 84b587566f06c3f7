"""How far running jobs are, written into their rows so that any process can tell a client.

Only what rose is written, at most once a second: a job that starts over keeps the percent that
its client has seen.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from engine import RequestId

if TYPE_CHECKING:
    from gateway.engine_client import EngineClient
    from gateway.jobs.leases import JobLeases
    from gateway.jobs.record import JobId

INTERVAL_S: Final = 1.0
MOST_UNFINISHED: Final = 99  # the file is still to be made when all steps are done


class ProgressNotes:
    """What a runner has written of its jobs' progress."""

    def __init__(self, engine: EngineClient, leases: JobLeases) -> None:
        """Ask `engine`; write to the rows that `leases` holds."""
        self._engine = engine
        self._leases = leases
        self._written: dict[JobId, int] = {}
        self._due_s = 0.0

    async def write(self, running: Collection[JobId], *, now_s: float) -> None:
        """Write what rose since the last time, unless that was less than a second ago."""
        if now_s < self._due_s:
            return
        self._due_s = now_s + INTERVAL_S
        before = {job: self._written.get(job, 0) for job in running}
        now = {job: max(before[job], self._percent(job)) for job in running}
        if now != before:
            await self._leases.note_progress(
                {job: percent for job, percent in now.items() if percent > before[job]}
            )
        self._written = now

    def _percent(self, job: JobId) -> int:
        return min(MOST_UNFINISHED, int(100 * self._engine.progress(RequestId(job))))
