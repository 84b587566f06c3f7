"""Connections and sessions, for SQLite by default and PostgreSQL by URL.

The layout of a SQLite database is brought up to date when it is opened. One on PostgreSQL may be
in use by others, so its operator does that with `trident migrate`.

On SQLite a transaction that reads first and writes later can fail at once with "database is
locked", whatever the busy timeout, if another connection wrote in between. So transactions that
write say so when they begin.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, event, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from gateway.db import schema

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import ConnectionPoolEntry

    from gateway.db.url import DatabaseUrl

_BUSY_TIMEOUT_MS: Final = 10_000
_WRITES: Final = "trident_writes"
_MIGRATION_LOCK: Final = 0x7269_6465_6E74  # any number that all our processes agree on
_POOL: Final = {"pool_size": 10, "max_overflow": 10, "pool_pre_ping": True}


class Database:
    """Sessions over one database; `open` before use, `close` at the end."""

    def __init__(self, url: DatabaseUrl) -> None:
        """Prepare an engine; nothing is connected yet."""
        self.url = url
        self._engine = create_async_engine(url.text, **({} if url.is_sqlite else _POOL))
        self._turn: AbstractAsyncContextManager[object] = nullcontext()
        if url.is_sqlite:
            _tune_sqlite(self._engine)
            # SQLite's own queue for its one writer is sleeping and trying again, up to 100 ms.
            self._turn = asyncio.Lock()
        writing = self._engine.execution_options(**{_WRITES: True})
        self._reader = async_sessionmaker(self._engine, expire_on_commit=False)
        self._writer = async_sessionmaker(writing, expire_on_commit=False)
        self._migrating = writing

    async def open(self) -> None:
        """Connect, and see to it that the layout is up to date.

        Raises:
            SchemaError: it is not, and it is not for a server to change it.
        """
        if self.url.is_sqlite:
            await self.migrate()
        else:
            async with self._engine.connect() as connection:
                await connection.run_sync(schema.expect_current)

    async def migrate(self) -> None:
        """Bring the layout up to date; of several processes that try at once, one does it."""
        async with self._migrating.begin() as connection:
            if not self.url.is_sqlite:
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
            await connection.run_sync(schema.upgrade)

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """Open a session that sees one moment and changes nothing."""
        async with self._reader() as session:
            yield session

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """Open a transaction that commits at the end, or rolls back on an error."""
        async with self._turn, self._writer() as session, session.begin():
            yield session

    async def check_writable(self) -> None:
        """Take and release the write lock; raises if the database cannot be written."""
        async with self.writing() as session:
            await session.execute(text("UPDATE job SET attempts = attempts WHERE 1 = 0"))


def _tune_sqlite(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def on_connect(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # transactions begin where `on_begin` says, and so
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
