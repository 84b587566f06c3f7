"""The app in this process, on this loop, with an engine that does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import httpx
import pytest
from litestar import Litestar
from sqlalchemy import text

from gateway.app import create_app
from gateway.db.models import JobRow
from gateway.db.session import Database
from gateway.db.url import DatabaseUrl
from gateway.settings import Settings
from tests.support.fake_engine import FakeEngine
from tests.support.postgres import running_postgres


class Serve(Protocol):
    """Starts an app; settings by keyword."""

    def __call__(self, **settings: Any) -> AbstractAsyncContextManager[httpx.AsyncClient]: ...


@asynccontextmanager
async def living(app: Litestar) -> AsyncIterator[None]:
    """Hold the lifespan in a task of its own: fixtures are set up and torn down in two tasks,
    which litestar's lifespan does not bear.
    """
    started, stop = asyncio.Event(), asyncio.Event()

    async def live() -> None:
        async with app.lifespan():
            started.set()
            await stop.wait()

    life = asyncio.create_task(live())
    starting = asyncio.create_task(started.wait())
    await asyncio.wait({life, starting}, return_when=asyncio.FIRST_COMPLETED)
    starting.cancel()
    try:
        if not life.done():
            yield
    finally:
        stop.set()
        await life


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def serve(engine: FakeEngine, tmp_path: Path) -> Serve:
    @asynccontextmanager
    async def start(**settings: Any) -> AsyncIterator[httpx.AsyncClient]:
        settings = {"drain_s": 0.01, **settings}
        app = create_app(Settings(models=(), data_dir=tmp_path, **settings), engine=engine)
        transport = httpx.ASGITransport(
            cast("Any", app),  # litestar's scope types are narrower
            raise_app_exceptions=False,
        )
        async with (
            living(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            yield client

    return start


@pytest.fixture
async def client(serve: Serve) -> AsyncIterator[httpx.AsyncClient]:
    async with serve() as client:
        yield client


@pytest.fixture(scope="session")
def postgres() -> Iterator[DatabaseUrl]:
    """An empty database on a PostgreSQL server that lives as long as the session."""
    with running_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseUrl:
    """Where the test's database is; tests that ask for it run once on either kind."""
    if request.param == "sqlite":
        return DatabaseUrl.in_folder(tmp_path)
    url: DatabaseUrl = request.getfixturevalue("postgres")
    return url


@pytest.fixture
async def database(database_url: DatabaseUrl) -> AsyncIterator[Database]:
    """An open database with nothing in it."""
    database = Database(database_url)
    await database.migrate()
    if not database_url.is_sqlite:
        tables = ", ".join(table.name for table in JobRow.metadata.sorted_tables)
        await database.execute(text(f"TRUNCATE {tables}"))
    yield database
    await database.close()
