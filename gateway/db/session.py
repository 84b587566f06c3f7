"""Transactions, on SQLite by default and on PostgreSQL by URL.

Work on the database is a function of a connection. On SQLite it runs in a thread, together with what
else waits (`sqlite.py`); on PostgreSQL in a transaction of its own, without blocking the loop. It
must do nothing but read and write rows, and returns values, never rows.

The layout of a SQLite database is brought up to date when it is opened. One on PostgreSQL may be
in use by others, so its operator does that with `trident migrate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from gateway.db import schema
from gateway.db.sqlite import SqliteThreads

if TYPE_CHECKING:
    from sqlalchemy import Connection, Executable

    from gateway.db.url import DatabaseUrl

T = TypeVar("T")

_MIGRATION_LOCK: Final = 0x7269_6465_6E74  # any number that all our processes agree on
_POOL: Final = {"pool_size": 10, "max_overflow": 10, "pool_pre_ping": True}


class _Connections(Protocol):
    async def read(self, work: Callable[[Connection], T]) -> T: ...

    async def write(self, work: Callable[[Connection], T]) -> T: ...

    async def flush(self) -> None: ...

    async def migrate(self, upgrade: Callable[[Connection], None]) -> None: ...

    async def close(self) -> None: ...


class Database:
    """Transactions over one database; `open` before use, `close` at the end."""

    def __init__(self, url: DatabaseUrl) -> None:
        """Prepare; nothing is connected yet."""
        self.url = url
        self._postgres = None if url.is_sqlite else _Postgres(url.dsn)
        self._connections: _Connections = self._postgres or SqliteThreads(url.text)

    async def open(self) -> None:
        """Connect, and see to it that the layout is up to date.

        Raises:
            SchemaError: it is not, and it is not for a server to change it.
        """
        if self._postgres is None:
            await self.migrate()
        else:
            await self._postgres.expect_current()

    async def migrate(self) -> None:
        """Bring the layout up to date; of several processes that try at once, one does it."""
        await self._connections.migrate(schema.upgrade)

    async def close(self) -> None:
        """Close all connections."""
        await self._connections.close()

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Return what `work` returns; it sees one moment and changes nothing."""
        return await self._connections.read(work)

    async def write(self, work: Callable[[Connection], T], *, sync: bool = True) -> T:
        """Return what `work` returns once what it wrote is committed; an error undoes all of it.

        Without `sync` a power cut may take it back until the next `flush`, though not the death of
        the process; PostgreSQL decides that by its own `synchronous_commit`.
        """
        result = await self._connections.write(work)
        if sync:
            await self.flush()
        return result

    async def flush(self) -> None:
        """Return once a power cut cannot take back what was committed before."""
        await self._connections.flush()

    async def execute(self, *statements: Executable, sync: bool = True) -> None:
        """Run statements in one transaction; what they return is dropped."""

        def work(connection: Connection) -> None:
            for statement in statements:
                connection.execute(statement)

        await self.write(work, sync=sync)

    async def check_writable(self) -> None:
        """Take and release the write lock; raises if the database cannot be written."""
        statement = text("UPDATE job SET attempts = attempts WHERE 1 = 0")
        await self.execute(statement)


class _Postgres:
    """Pooled connections to a PostgreSQL server."""

    def __init__(self, dsn: str) -> None:
        import asyncpg  # noqa: PLC0415 - an extra

        self._engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=lambda: asyncpg.connect(dsn),  # SQLAlchemy knows no sslmode
            hide_parameters=True,  # errors are logged, and the values of a job hold its prompt
            **_POOL,
        )

    async def expect_current(self) -> None:
        async with self._engine.connect() as connection:
            await connection.run_sync(schema.expect_current)

    async def read(self, work: Callable[[Connection], T]) -> T:
        async with self._engine.connect() as connection:
            return await connection.run_sync(work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        async with self._engine.begin() as connection:
            return await connection.run_sync(work)

    async def flush(self) -> None:
        """It has been waited for at each commit, if the server is set up so."""

    async def migrate(self, upgrade: Callable[[Connection], None]) -> None:
        async with self._engine.begin() as connection:
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
            await connection.run_sync(upgrade)

    async def close(self) -> None:
        await self._engine.dispose()
