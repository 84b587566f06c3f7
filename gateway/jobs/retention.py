"""What is removed because it was kept long enough: first files, much later rows.

Bytes go before the rows that name them: a crash in between leaves a row that is looked at again,
never bytes that nobody knows of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog
from sqlalchemy import delete, select, update

from gateway.db.models import ArtifactRow, JobRow
from gateway.jobs.record import job_id_of
from gateway.jobs.state import TERMINAL

if TYPE_CHECKING:
    from uuid import UUID

    from gateway.db.session import Database
    from gateway.jobs.record import JobId
    from gateway.storage.blobs import BlobStore

BATCH: Final = 100

_log = structlog.get_logger(__name__)


class Retention:
    """Removes files and rows whose time is over."""

    def __init__(self, database: Database, blobs: BlobStore, *, history_s: float) -> None:
        """Forget jobs that have been over for `history_s` seconds."""
        self._database = database
        self._blobs = blobs
        self._history_s = history_s

    async def remove_content(self, *, now_s: float) -> int:
        """Remove the files of up to `BATCH` jobs that have expired; return of how many.

        Files that cannot be removed are tried again with the next call, and stop no others.
        """
        expired = (
            select(JobRow.id)
            .where(
                JobRow.status.in_(TERMINAL),
                JobRow.expires_at_s < now_s,
                JobRow.content_removed_s.is_(None),
            )
            .limit(BATCH)
        )
        keys = await self._database.read(lambda connection: connection.scalars(expired).all())
        failed: dict[JobId, str] = {}
        for key in keys:
            try:
                await self._blobs.delete_folder(job_id_of(key))
            except Exception as error:  # noqa: BLE001 - whatever a store raises
                failed[job_id_of(key)] = repr(error)
            else:
                await self._note_removed(key, now_s)
        if failed:
            job, reason = next(iter(failed.items()))
            _log.warning("content_not_removed", jobs=len(failed), job_id=job, reason=reason)
        return len(keys) - len(failed)

    async def _note_removed(self, key: UUID, now_s: float) -> None:
        await self._database.execute(
            delete(ArtifactRow).where(ArtifactRow.job_id == key),
            update(JobRow).where(JobRow.id == key).values(content_removed_s=now_s),
        )

    async def forget(self, *, now_s: float) -> int:
        """Delete the rows of up to `BATCH` jobs that have been over for long; return how many."""
        old = (
            select(JobRow.id)
            .where(
                JobRow.status.in_(TERMINAL),
                JobRow.finished_s < now_s - self._history_s,
                JobRow.content_removed_s.is_not(None),
            )
            .limit(BATCH)
        )
        statement = delete(JobRow).where(JobRow.id.in_(old)).returning(JobRow.id)
        return await self._database.write(
            lambda connection: len(connection.scalars(statement).all())
        )
