"""The write-ahead log of a SQLite database: the file that every commit is written to first.

Two things that wait for the disk are done to it here, beside the threads that read and write: `flush`
makes sure of what was committed, and checkpoints move it into the database file, so that the log can
begin anew. SQLite's own checkpoints would run in the commit that made the log too long, and
everybody who writes would wait for them.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from typing import Final

import structlog

_WRITES_PER_CHECKPOINT: Final = 100  # of about ten pages each
_MOST_PAGES: Final = 8_000  # 32 MB
_WAIT_FOR_OTHERS_S: Final = 0.1  # those who write wait as long, so rather try again later

_log = structlog.get_logger(__name__)


class WriteAheadLog:
    """The log of the database file at `path`; belongs to one event loop. `close` at the end."""

    def __init__(self, path: str) -> None:
        """Open nothing yet."""
        self._path = path
        self._file: int | None = None
        self._now: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None
        self._connection: sqlite3.Connection | None = None
        self._checkpoint: asyncio.Task[None] | None = None
        self._written = 0

    async def flush(self) -> None:
        """Return once the disk has all that it holds now; who asks meanwhile shares the next wait.

        It is what SQLite itself does at each commit with `synchronous=FULL`. A checkpoint lets go of
        what the log holds only when the disk has all of it.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._wait(self._now), name="flush")
        await asyncio.shield(self._next)

    async def _wait(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        self._now, self._next = self._next, None
        await asyncio.to_thread(self._sync)

    def _sync(self) -> None:
        if self._file is None:
            self._file = os.open(f"{self._path}-wal", os.O_RDWR)
        os.fsync(self._file)

    def written(self) -> None:
        """Hear of one more piece of work in the log; now and then that begins a checkpoint."""
        self._written += 1
        if self._written >= _WRITES_PER_CHECKPOINT and self._checkpoint is None:
            self._written = 0
            self._checkpoint = asyncio.create_task(self._move(), name="checkpoint")

    async def _move(self) -> None:
        try:
            await asyncio.to_thread(self._move_pages)
        except Exception as error:  # noqa: BLE001 - the log only grows until the next one
            _log.warning("checkpoint_failed", reason=repr(error))
        finally:
            self._checkpoint = None

    def _move_pages(self) -> None:
        """Move what can be moved while others write; of a long log the rest, for which they wait.

        They write on meanwhile, so without the second step a busy log might never be empty.
        """
        if self._connection is None:
            # One thread at a time uses it, though not always the same one.
            self._connection = sqlite3.connect(
                self._path, timeout=_WAIT_FOR_OTHERS_S, check_same_thread=False
            )
        _, pages, _moved = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if pages > _MOST_PAGES:
            self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()

    async def close(self) -> None:
        """Finish what was begun; nobody writes any more."""
        if under_way := [task for task in (self._next or self._now, self._checkpoint) if task]:
            await asyncio.wait(under_way)
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
