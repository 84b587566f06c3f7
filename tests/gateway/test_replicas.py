"""Gateways and engines as processes of their own on one database: any of them will do."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from sqlalchemy import text

from gateway.app import create_app
from gateway.db.session import Database
from gateway.db.url import DatabaseUrl
from gateway.jobs import carriers
from gateway.jobs.carriers import PostgresEvents, SqliteEvents
from gateway.jobs.events import JobEvent
from gateway.jobs.record import new_job_id
from gateway.jobs.state import JobStatus
from gateway.settings import Settings
from tests.gateway.conftest import living
from tests.support.fake_engine import FakeEngine, png_size, video_spec_of

Replica = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
BODY = {"prompt": "a red circle"}


@pytest.fixture
def replica(database: Database, tmp_path: Path) -> Replica:
    """Start a process-like app on the test's database; all share one data folder."""

    @asynccontextmanager
    async def start(
        role: str, engine: FakeEngine | None = None, **settings: Any
    ) -> AsyncIterator[httpx.AsyncClient]:
        chosen = Settings(
            models=(),
            data_dir=tmp_path,
            database=database.url,
            role=cast("Any", role),
            **settings,
        )
        app = create_app(chosen, engine=engine)
        transport = httpx.ASGITransport(cast("Any", app), raise_app_exceptions=False)
        async with (
            living(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            yield client

    return start


async def until_ready(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(10):
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.02)


async def test_a_gateway_answers_with_what_another_processes_engine_made(
    replica: Replica, engine: FakeEngine
) -> None:
    async with replica("engine", engine), replica("gateway") as one, replica("gateway") as other:
        await until_ready(one)
        await until_ready(other)
        models = (await one.get("/v1/models")).json()["data"]
        wanted = {**BODY, "response_format": "url", "size": "64x64"}
        answer = await one.post("/v1/images/generations", json=wanted)
        file = await other.get(answer.json()["data"][0]["url"])
    assert [model["id"] for model in models] == ["shapes"]
    assert png_size(file.content) == (64, 64)


async def test_any_gateway_follows_and_deletes_a_video(replica: Replica) -> None:
    engine = FakeEngine(video_spec_of())
    async with replica("engine", engine), replica("gateway") as one, replica("gateway") as other:
        await until_ready(one)
        await until_ready(other)
        video = (await one.post("/v1/videos", json=BODY)).json()["id"]
        async with asyncio.timeout(10):
            while (await other.get(f"/v1/videos/{video}")).json()["status"] != "completed":
                await asyncio.sleep(0.02)
        content = await other.get(f"/v1/videos/{video}/content")
        assert content.headers["content-type"] == "video/mp4"
        assert (await other.delete(f"/v1/videos/{video}")).status_code == 200
        assert (await one.get(f"/v1/videos/{video}")).status_code == 404


async def test_an_engine_elsewhere_stops_at_once_when_a_gateways_caller_leaves(
    replica: Replica, engine: FakeEngine
) -> None:
    engine.gate.clear()
    async with replica("engine", engine), replica("gateway") as client:
        await until_ready(client)
        call = asyncio.create_task(client.post("/v1/images/generations", json=BODY))
        await engine.asked.wait()
        call.cancel()
        async with asyncio.timeout(3):
            while not engine.cancelled:
                await asyncio.sleep(0.01)
    assert engine.cancelled == [engine.requests[0].id]


async def test_what_a_stopped_engine_gives_back_another_one_runs(
    replica: Replica, engine: FakeEngine
) -> None:
    engine.gate.clear()
    successor = FakeEngine()
    async with replica("gateway") as client:
        async with replica("engine", engine):
            await until_ready(client)
            call = asyncio.create_task(client.post("/v1/images/generations", json=BODY))
            await engine.asked.wait()
        async with replica("engine", successor):
            answer = await call
    assert answer.status_code == 200
    assert [request.id for request in successor.requests] == [engine.requests[0].id]


async def test_a_gateway_without_any_engine_is_not_ready_and_says_why(replica: Replica) -> None:
    async with replica("gateway") as client:
        answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert "trident serve --role engine" in answer.json()["reasons"][0]


async def test_a_gateway_hears_within_seconds_that_an_engine_is_ready(
    replica: Replica, engine: FakeEngine
) -> None:
    engine.obstacles = ("The weights are being loaded.",)
    async with replica("engine", engine), replica("gateway") as client:
        async with asyncio.timeout(10):
            while (unready := await client.get("/readyz")).json()["reasons"] != [*engine.obstacles]:
                await asyncio.sleep(0.05)
        assert unready.status_code == 503
        engine.obstacles = ()
        async with asyncio.timeout(8):  # a heartbeat takes ten
            await until_ready(client)


async def test_an_engine_answers_for_its_health_and_nothing_else(
    replica: Replica, engine: FakeEngine
) -> None:
    async with replica("engine", engine) as client:
        await until_ready(client)
        assert (await client.get("/v1/models")).status_code == 404


def an_event() -> JobEvent:
    return JobEvent(new_job_id(), JobStatus.QUEUED)


async def test_events_reach_the_other_process_and_come_once_at_home(
    postgres: DatabaseUrl,
) -> None:
    here, there = PostgresEvents(postgres), PostgresEvents(postgres)
    event = an_event()
    with here.watch() as home, there.watch() as away:
        async with here.connected(), there.connected():
            assert await away.next(timeout_s=10) == []  # connected: look up now
            assert await home.next(timeout_s=10) == []
            here.publish(event)
            assert await away.next(timeout_s=10) == [event]
            assert await home.next(timeout_s=10) == [event]
            assert await home.next(timeout_s=0.05) == []


@pytest.mark.parametrize("name", ["sslmode", "ssl"])
async def test_the_url_may_say_what_postgresql_itself_calls_encryption(
    postgres: DatabaseUrl, name: str
) -> None:
    url = DatabaseUrl.parse(f"{postgres.text}&{name}=disable")
    database, here, there = Database(url), PostgresEvents(url), PostgresEvents(url)
    await database.migrate()
    await database.open()
    event = an_event()
    with there.watch() as away:
        async with here.connected(), there.connected():
            await away.next(timeout_s=10)
            here.publish(event)
            assert await away.next(timeout_s=10) == [event]
    await database.close()


async def test_events_come_again_after_the_connection_was_cut(
    postgres: DatabaseUrl,
) -> None:
    here, there, database = PostgresEvents(postgres), PostgresEvents(postgres), Database(postgres)
    event = an_event()
    cut = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND (query LIKE '%LISTEN%' OR query LIKE '%pg_notify%')"
    )
    with there.watch() as away:
        async with here.connected(), there.connected():
            await away.next(timeout_s=10)
            await database.execute(cut)
            async with asyncio.timeout(20):
                heard: list[JobEvent] = []
                while event not in heard:
                    here.publish(event)
                    heard.extend(await away.next(timeout_s=0.2))
    await database.close()


async def test_processes_that_share_a_sqlite_file_notice_each_others_writes(
    tmp_path: Path,
) -> None:
    url = DatabaseUrl.in_folder(tmp_path)
    database, events = Database(url), SqliteEvents(url)
    await database.open()
    with events.watch() as watch:
        async with events.connected():
            await watch.next(timeout_s=5)
            loop = asyncio.get_running_loop()
            await database.execute(text("INSERT INTO secret VALUES ('a', '00')"))
            began_s = loop.time()
            assert await watch.next(timeout_s=5) == []
            assert loop.time() - began_s < 4
    await database.close()


async def test_a_look_that_fails_is_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = DatabaseUrl.in_folder(tmp_path)
    database, events = Database(url), SqliteEvents(url)
    await database.open()
    looks = iter([1, sqlite3.OperationalError("disk I/O error"), 2])

    def version_of(_: sqlite3.Connection) -> int:
        look = next(looks, 2)
        if isinstance(look, Exception):
            raise look
        return look

    monkeypatch.setattr(carriers, "_version_of", version_of)
    with events.watch() as watch:
        async with events.connected():
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            for _ in range(2):  # versions 1 and 2
                assert await watch.next(timeout_s=10) == []
            assert loop.time() - began_s < 9
    await database.close()
