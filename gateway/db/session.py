"""Connections and sessions, for SQLite by default and PostgreSQL by URL.

On SQLite a transaction that reads first and writes later can fail at once with "database is
locked", whatever the busy timeout, if another connection wrote in between. So transactions that
write say so when they begin.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, event, inspect, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.schema import CreateColumn

from gateway.db.models import JobRow

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import ConnectionPoolEntry

_BUSY_TIMEOUT_MS: Final = 10_000
_WRITES: Final = "trident_writes"


def sqlite_url(data_dir: Path) -> str:
    """Return the URL of the embedded database in `data_dir`."""
    return f"sqlite+aiosqlite:///{data_dir / 'trident.db'}"


class Database:
    """Sessions over one database; `open` before use, `close` at the end."""

    def __init__(self, url: str) -> None:
        """Prepare an engine; nothing is connected yet."""
        self._engine = create_async_engine(url)
        self._turn: AbstractAsyncContextManager[object] = nullcontext()
        if self._engine.dialect.name == "sqlite":
            _tune_sqlite(self._engine)
            # SQLite's own queue for its one writer is sleeping and trying again, up to 100 ms.
            self._turn = asyncio.Lock()
        writing = self._engine.execution_options(**{_WRITES: True})
        self._reader = async_sessionmaker(self._engine, expire_on_commit=False)
        self._writer = async_sessionmaker(writing, expire_on_commit=False)

    async def open(self) -> None:
        """Create the tables, columns and indexes that are missing."""
        async with self._engine.begin() as connection:
            await connection.run_sync(JobRow.metadata.create_all)
            await connection.run_sync(_add_what_is_new)

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


def _add_what_is_new(connection: Connection) -> None:
    """Bring the tables of an older version up to date: columns are only ever added."""
    present = inspect(connection)
    for table in JobRow.metadata.sorted_tables:
        known = {column["name"] for column in present.get_columns(table.name)}
        for column in table.columns:
            if column.name not in known:
                ddl = CreateColumn(column).compile(dialect=connection.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {ddl}")
        for index in table.indexes:
            index.create(connection, checkfirst=True)


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
