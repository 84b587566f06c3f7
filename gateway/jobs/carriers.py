"""Events that reach other processes on the same database.

`PostgresEvents` sends notices over LISTEN/NOTIFY; `SqliteEvents` looks at a counter that SQLite
raises when another connection has written. Both may lose or repeat events: whoever listens reads
the table again, and polls slowly besides.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, closing, suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog
from sqlalchemy import make_url
from uuid_utils.compat import uuid7

from gateway.jobs.events import InProcessEvents, JobEvent, JobEvents, Watch, bare

if TYPE_CHECKING:
    from gateway.db.url import DatabaseUrl
    from gateway.jobs.record import JobId

_CHANNEL: Final = "trident_jobs"
_MOST_WAITING: Final = 10_000
_RECONNECT_S: Final = (0.2, 5.0)
_LOOK_S: Final = 0.1

_log = structlog.get_logger(__name__)


class _Notice(msgspec.Struct, frozen=True):
    """What travels: an event, and which process it comes from."""

    sender: str
    event: JobEvent


class PostgresEvents:
    """Events between processes on one PostgreSQL."""

    def __init__(self, url: DatabaseUrl) -> None:
        """Know where to connect; `connected` does."""
        self._dsn = url.dsn
        self._name = uuid7().hex
        self._here = InProcessEvents()
        self._outbox: deque[JobEvent] = deque(maxlen=_MOST_WAITING)
        self._wake = asyncio.Event()
        self._pause_s = _RECONNECT_S[0]

    def publish(self, event: JobEvent) -> None:
        """Tell everyone here now, and everyone elsewhere soon."""
        self._here.publish(event)
        self._outbox.append(bare(event))
        self._wake.set()

    def nudge(self) -> None:
        """Have everyone in this process look up now."""
        self._here.nudge()

    def watch(self, job: JobId | None = None) -> AbstractContextManager[Watch]:
        """Listen to one job, or to all, for as long as the context lasts."""
        return self._here.watch(job)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Send and receive for as long as the context lasts."""
        task = asyncio.create_task(self._stay_connected(), name="job-events")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _stay_connected(self) -> None:
        while True:
            try:
                await self._talk()
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it was, polling goes on meanwhile
                _log.warning(
                    "job_events_disconnected", reason=repr(error), retry_in_s=self._pause_s
                )
            await asyncio.sleep(self._pause_s)
            self._pause_s = min(_RECONNECT_S[1], 2 * self._pause_s)

    async def _talk(self) -> None:
        """Listen and send until the connection breaks."""
        import asyncpg  # noqa: PLC0415 - an extra

        connection = await asyncpg.connect(self._dsn)
        try:
            await connection.add_listener(_CHANNEL, self._hear)
            self._pause_s = _RECONNECT_S[0]
            self._here.nudge()  # what was said before we listened is lost
            while not connection.is_closed():
                await self._send(connection)
        finally:
            await connection.close(timeout=1.0)

    async def _send(self, connection: Any) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_RECONNECT_S[1]):  # or a dead connection stays unnoticed
                await self._wake.wait()
        self._wake.clear()
        notices = [msgspec.json.encode(_Notice(self._name, e)).decode() for e in self._outbox]
        self._outbox.clear()
        await connection.executemany(
            f"SELECT pg_notify('{_CHANNEL}', $1)",
            [(notice,) for notice in notices],
        )
        if not notices:
            await connection.execute("SELECT 1")

    def _hear(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        try:
            notice = msgspec.json.decode(str(payload), type=_Notice)
        except msgspec.MsgspecError:
            self._here.nudge()  # of another version: something changed
            return
        if notice.sender != self._name:
            self._here.publish(notice.event)


class SqliteEvents(InProcessEvents):
    """Events between processes on one SQLite file: others' writes wake everyone up."""

    def __init__(self, url: DatabaseUrl) -> None:
        """Know which file to look at; `connected` does."""
        super().__init__()
        self._path = make_url(url.text).database or ""

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Look for as long as the context lasts."""
        # One thread at a time uses it, though not always the same one.
        with closing(sqlite3.connect(self._path, check_same_thread=False)) as connection:
            task = asyncio.create_task(self._look(connection), name="job-events")
            try:
                yield
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _look(self, connection: sqlite3.Connection) -> None:
        seen: int | None = None
        while True:
            version = seen
            try:
                version = await asyncio.to_thread(_version_of, connection)
            except sqlite3.Error as error:  # polling goes on meanwhile
                _log.warning("job_events_not_read", reason=repr(error))
            if version != seen:
                seen = version
                self.nudge()
            await asyncio.sleep(_LOOK_S)


def _version_of(connection: sqlite3.Connection) -> int:
    """Return a number that grows when another connection has committed."""
    return int(connection.execute("PRAGMA data_version").fetchone()[0])


def events_for(url: DatabaseUrl, *, shared: bool) -> JobEvents:
    """Return the events of a process; `shared` tells that others use the same SQLite file."""
    if not url.is_sqlite:
        return PostgresEvents(url)
    return SqliteEvents(url) if shared else InProcessEvents()
