"""What is removed because it was kept long enough: first files, much later rows.

Bytes go before the rows that name them: a crash in between leaves a row that is looked at again,
never bytes that nobody knows of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import delete, select, update

from gateway.db.models import ArtifactRow, JobRow
from gateway.jobs.record import job_id_of
from gateway.jobs.state import TERMINAL

if TYPE_CHECKING:
    from uuid import UUID

    from gateway.db.session import Database
    from gateway.storage.blobs import BlobStore

_BATCH: Final = 100


class Retention:
    """Removes files and rows whose time is over."""

    def __init__(self, database: Database, blobs: BlobStore, *, history_s: float) -> None:
        """Forget jobs that have been over for `history_s` seconds."""
        self._database = database
        self._blobs = blobs
        self._history_s = history_s

    async def remove_content(self, *, now_s: float) -> int:
        """Remove the files of up to 100 jobs that have expired; return how many jobs that were."""
        expired = (
            select(JobRow.id)
            .where(
                JobRow.status.in_(TERMINAL),
                JobRow.expires_at_s < now_s,
                JobRow.content_removed_s.is_(None),
            )
            .limit(_BATCH)
        )
        keys = await self._database.read(lambda connection: connection.scalars(expired).all())
        for key in keys:
            await self._blobs.delete_folder(job_id_of(key))
            await self._note_removed(key, now_s)
        return len(keys)

    async def _note_removed(self, key: UUID, now_s: float) -> None:
        await self._database.execute(
            delete(ArtifactRow).where(ArtifactRow.job_id == key),
            update(JobRow).where(JobRow.id == key).values(content_removed_s=now_s),
        )

    async def forget(self, *, now_s: float) -> int:
        """Delete the rows of up to 100 jobs that have been over for long; return how many."""
        old = (
            select(JobRow.id)
            .where(
                JobRow.status.in_(TERMINAL),
                JobRow.finished_s < now_s - self._history_s,
                JobRow.content_removed_s.is_not(None),
            )
            .limit(_BATCH)
        )
        statement = delete(JobRow).where(JobRow.id.in_(old)).returning(JobRow.id)
        return await self._database.write(
            lambda connection: len(connection.scalars(statement).all())
        )
