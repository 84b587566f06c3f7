"""The app in this process, on this loop, with an engine that does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import httpx
import pytest
from litestar import Litestar

from gateway.app import create_app
from gateway.settings import Settings
from tests.support.fake_engine import FakeEngine


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
        app = create_app(Settings(models=(), data_dir=tmp_path, **settings), engine=engine)
        transport = httpx.ASGITransport(
            cast("Any", app),  # litestar's scope types are narrower
            raise_app_exceptions=False,
        )
        async with (
            living(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            yield client

    return start


@pytest.fixture
async def client(serve: Serve) -> AsyncIterator[httpx.AsyncClient]:
    async with serve() as client:
        yield client
