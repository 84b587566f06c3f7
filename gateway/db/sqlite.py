"""SQLite from threads of our own: one that writes, one that reads, each with one connection.

A thread takes all work that waits and does it in one transaction (group commit): sixteen requests
that come at once cost one commit, and each statement costs no hop between threads. If a piece of
work fails after it has written, the transaction is undone and every piece is done again in one of
its own, so a failure takes nothing of the others with it. Nobody hears of a piece before the
transaction that holds it is committed.

Everything committed survives the death of the process. What is to survive a power cut, too, waits
for `flush`, which waits for the disk beside both threads, so commits never do (`write_ahead_log.py`).
The rest is on the disk with the next flush at the latest; what a power cut takes of it must be such
that it can be done again.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from sqlalchemy import create_engine, event, make_url
from sqlalchemy.pool import NullPool

from gateway.db.write_ahead_log import WriteAheadLog

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

T = TypeVar("T")

_BUSY_TIMEOUT_MS: Final = 10_000
_MOST_AT_ONCE: Final = 64
_BEGIN: Final = "trident_begin"


class _Piece(Generic[T]):
    """Work that somebody waits for, and what became of it."""

    def __init__(self, work: Callable[[Connection], T]) -> None:
        self.future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.error: Exception | None = None
        self._work = work
        self._result: T | None = None

    def run(self, connection: Connection) -> None:
        """Do it in the transaction that is open; raises if it has written before it failed."""
        before = _changes(connection)
        self.error = None
        try:
            self._result = self._work(connection)
        except Exception as error:
            self.error = error
            if _changes(connection) != before:
                raise

    def tell(self) -> None:
        """Hand the result to who waits for it, if anybody still does."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self._result)  # type: ignore[arg-type] # no error: it is a T


class Lane:
    """A thread with a connection that does work in the order it came; `close` at the end.

    Belongs to one event loop, as a connection does.
    """

    def __init__(self, engine: Engine, begin: str) -> None:
        """Begin each transaction with the statement `begin`; the thread starts with the first."""
        self._engine = engine.execution_options(**{_BEGIN: begin})
        self._waiting: SimpleQueue[_Piece[Any] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    async def do(self, work: Callable[[Connection], T]) -> T:
        """Return what `work` returns or raise what it raises, once its transaction has ended.

        It is done even if the caller is cancelled meanwhile.
        """
        if self._thread is None:
            loop = asyncio.get_running_loop()
            self._thread = threading.Thread(
                target=self._run, args=(loop,), name="sqlite", daemon=True
            )
            self._thread.start()
        piece = _Piece(work)
        self._waiting.put(piece)
        return await piece.future

    async def close(self) -> None:
        """Do what still waits, and end the thread."""
        if self._thread is not None:
            self._waiting.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        with ExitStack() as stack:
            connection: Connection | None = None
            while pieces := self._next():
                try:
                    if connection is None:
                        connection = stack.enter_context(self._engine.connect())
                    _do_all(connection, pieces)
                except Exception as error:  # noqa: BLE001 - raised where the work came from
                    for piece in pieces:
                        piece.error = error
                with suppress(RuntimeError):  # the loop was closed, and nobody waits
                    loop.call_soon_threadsafe(_tell_all, pieces)

    def _next(self) -> list[_Piece[Any]]:
        """Wait for work and return all that has come; none if there was the last."""
        pieces: list[_Piece[Any]] = []
        piece = self._waiting.get()
        while piece is not None:
            pieces.append(piece)
            if len(pieces) == _MOST_AT_ONCE or self._waiting.empty():
                return pieces
            piece = self._waiting.get()
        if pieces:
            self._waiting.put(None)  # the end is for the next time
        return pieces


def _do_all(connection: Connection, pieces: Sequence[_Piece[Any]]) -> None:
    try:
        with connection.begin():
            for piece in pieces:
                piece.run(connection)
    except Exception:  # noqa: BLE001 - whose it was shows when each is done alone
        for piece in pieces:
            _do_alone(connection, piece)


def _do_alone(connection: Connection, piece: _Piece[Any]) -> None:
    try:
        with connection.begin():
            piece.run(connection)
    except Exception as error:  # noqa: BLE001 - raised where the work came from
        piece.error = error


def _changes(connection: Connection) -> int:
    """Return how many rows this connection has written so far."""
    return int(connection.connection.driver_connection.total_changes)  # type: ignore[union-attr]


def _tell_all(pieces: Sequence[_Piece[Any]]) -> None:
    for piece in pieces:
        piece.tell()


class SqliteThreads:
    """The two lanes of one database file, and its log."""

    def __init__(self, url: str) -> None:
        """Open nothing yet."""
        self._log = WriteAheadLog(str(make_url(url).database))
        # Errors are logged, and the values of a job hold its prompt.
        self.engine = create_engine(url, hide_parameters=True, poolclass=NullPool)
        _tune(self.engine)
        self._writing = Lane(self.engine, "BEGIN IMMEDIATE")
        self._reading = Lane(self.engine, "BEGIN")

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Do work that changes nothing; it sees all that was written before."""
        return await self._reading.do(work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Do work in a transaction that writes."""
        result = await self._writing.do(work)
        self._log.written()
        return result

    async def flush(self) -> None:
        """Return once the disk has all that was committed before."""
        await self._log.flush()

    async def migrate(self, upgrade: Callable[[Connection], None]) -> None:
        """Change the layout in a transaction of its own."""
        await asyncio.to_thread(self._migrate, upgrade)

    def _migrate(self, upgrade: Callable[[Connection], None]) -> None:
        writing = self.engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})
        with writing.begin() as connection:
            upgrade(connection)

    async def close(self) -> None:
        """Finish what waits, and close the connections."""
        await self._writing.close()
        await self._reading.close()
        await self._log.close()
        self.engine.dispose()


def _tune(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # transactions begin where `on_begin` says, and so
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        _expect_log(cursor.execute("PRAGMA journal_mode=WAL").fetchone()[0])
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA wal_autocheckpoint=0")  # see write_ahead_log.py
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        begin = connection.get_execution_options().get(_BEGIN, "BEGIN")
        connection.connection.cursor().execute(begin)  # a fifth of what SQLAlchemy's own call costs


def _expect_log(mode: str) -> None:
    """Refuse a database that would keep another journal: `flush` waits for the log."""
    if mode != "wal":
        message = (
            f"its file system allows SQLite no write-ahead log (the journal is {mode!r}), as many "
            "that are shared over a network do not. Choose another --data-dir, or PostgreSQL."
        )
        raise OSError(message)
