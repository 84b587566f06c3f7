"""What goes wrong around a gateway, and whom it may not harm: stores, versions, callers, pictures."""

from __future__ import annotations

import asyncio
import io
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import httpx
import pytest
from PIL import Image

import gateway.jobs.store
from engine.ports import Clock
from gateway.db.session import Database
from gateway.db.url import DatabaseUrl
from gateway.errors import OverloadedError
from gateway.jobs.carriers import PostgresEvents
from gateway.jobs.engines import EngineRegistry, EngineReport
from gateway.jobs.patience import Patience
from gateway.remote import RemoteEngines
from gateway.storage.blobs import BlobStore, StoreAwayError
from gateway.uploads import Darkroom, Size, checked
from tests.gateway.conftest import Serve
from tests.support.fake_engine import FakeEngine, spec_of, video_spec_of

IMAGES = "/v1/images/generations"
BODY = {"prompt": "x"}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(spec_of(), video_spec_of())


def png(width: int = 64, height: int = 48) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


async def ended(client: httpx.AsyncClient) -> str:
    """Return how the only job ended."""
    async with asyncio.timeout(10):
        while True:
            (job,) = (await client.get("/v1/jobs")).json()["data"] or [{"status": "queued"}]
            if job["status"] not in {"queued", "in_progress"}:
                status: str = job["status"]
                return status
            await asyncio.sleep(0.02)


class TestLeaving:
    """A caller who leaves while its job is being written."""

    @pytest.fixture
    def writing(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, ...]]:
        """Two events: a job is about to be written; it may be."""
        about, may = threading.Event(), threading.Event()
        values_of = gateway.jobs.store.values_of

        def slow(*new: Any) -> dict[str, Any]:
            about.set()
            may.wait(10)
            return values_of(*new)

        monkeypatch.setattr(gateway.jobs.store, "values_of", slow)
        yield about, may
        may.set()

    async def leave(
        self, call: asyncio.Task[httpx.Response], writing: tuple[threading.Event, ...]
    ) -> None:
        about, may = writing
        await asyncio.to_thread(about.wait, 10)
        call.cancel()
        await asyncio.sleep(0)
        may.set()
        with suppress(asyncio.CancelledError):
            await call

    async def test_leaves_no_work_behind(
        self, serve: Serve, engine: FakeEngine, writing: tuple[threading.Event, ...]
    ) -> None:
        engine.gate.clear()
        async with serve() as client:
            call = asyncio.create_task(client.post(IMAGES, json=BODY))
            await self.leave(call, writing)
            assert await ended(client) == "cancelled"

    async def test_leaves_a_video_that_has_the_picture_that_it_begins_with(
        self, serve: Serve, engine: FakeEngine, writing: tuple[threading.Event, ...]
    ) -> None:
        files = {"input_reference": ("x.png", png(), "image/png")}
        async with serve() as client:
            call = asyncio.create_task(client.post("/v1/videos", data=BODY, files=files))
            await self.leave(call, writing)
            assert await ended(client) == "completed"
        assert len(engine.files[0]) == 1


class TestStore:
    """An artifact store that fails."""

    @pytest.fixture
    def failing(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
        """Let the next so many writes fail."""
        left, put = 0, BlobStore.put

        async def flaky(store: BlobStore, key: str, content: bytes) -> None:
            nonlocal left
            if left:
                left -= 1
                raise StoreAwayError("No space left on device")
            await put(store, key, content)

        def fail(times: int) -> None:
            nonlocal left
            left = times

        monkeypatch.setattr(BlobStore, "put", flaky)
        monkeypatch.setattr("gateway.jobs.patience._PAUSES_S", (0.0, 0.0))
        return fail

    async def test_costs_no_job_what_was_made_if_it_comes_back(
        self, serve: Serve, engine: FakeEngine, failing: Callable[[int], None]
    ) -> None:
        failing(2)
        async with serve() as client:
            answer = await client.post(IMAGES, json=BODY)
        assert answer.status_code == 200
        assert len(engine.requests) == 1

    async def test_costs_a_try_if_it_stays_away_for_long(
        self, serve: Serve, engine: FakeEngine, failing: Callable[[int], None]
    ) -> None:
        failing(3)
        async with serve() as client:
            answer = await client.post(IMAGES, json=BODY)
        assert answer.status_code == 200
        assert len(engine.requests) == 2

    async def test_fails_a_job_that_it_has_refused_three_times(
        self, serve: Serve, engine: FakeEngine, failing: Callable[[int], None]
    ) -> None:
        failing(1000)
        async with serve() as client:
            answer = await client.post(IMAGES, json=BODY)
            job = (await client.get("/v1/jobs")).json()["data"][0]
        assert (answer.status_code, len(engine.requests)) == (500, 3)
        assert job["error"]["code"] == "artifact_store_failed"

    async def test_is_not_waited_for_because_of_an_error_of_ours(self) -> None:
        tried = 0

        async def broken() -> None:
            nonlocal tried
            tried += 1
            raise TypeError("a bug")

        with pytest.raises(TypeError):
            await Patience().bear(broken)
        assert tried == 1

    async def test_queues_no_job_again_that_was_cancelled_meanwhile(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked, answers = asyncio.Event(), asyncio.Event()

        async def fail(*_: object) -> None:
            asked.set()
            await answers.wait()
            raise StoreAwayError("No space left on device")

        monkeypatch.setattr(BlobStore, "put", fail)
        monkeypatch.setattr("gateway.jobs.patience._PAUSES_S", ())
        async with serve() as client:
            video = (await client.post("/v1/videos", json=BODY)).json()["id"]
            await asked.wait()
            await client.post(f"/v1/jobs/{video}/cancel")
            answers.set()
            assert await ended(client) == "cancelled"
            assert (await client.get(f"/v1/jobs/{video}")).json()["attempts"] == 1

    async def test_lets_a_caller_with_a_picture_come_again_and_leaves_no_job(
        self, serve: Serve, tmp_path: Path
    ) -> None:
        files = {"input_reference": ("x.png", png(), "image/png")}
        async with serve() as client:
            shutil.rmtree(tmp_path / "artifacts", ignore_errors=True)
            (tmp_path / "artifacts").write_bytes(b"a file where a folder should be")
            answer = await client.post("/v1/videos", data=BODY, files=files)
            jobs = (await client.get("/v1/jobs")).json()["data"]
        assert (answer.status_code, jobs) == (503, [])
        assert answer.json()["error"]["code"] == "artifact_store_unavailable"
        assert "retry-after" in answer.headers
        assert str(tmp_path) not in answer.text

    async def test_that_removes_nothing_changes_no_answer(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refuse = AsyncMock(side_effect=StoreAwayError("not allowed"))
        monkeypatch.setattr(BlobStore, "delete", refuse)
        files, key = {"input_reference": ("x.png", png(), "image/png")}, {"idempotency-key": "k"}
        async with serve() as client:
            first, again, other = [
                await client.post("/v1/videos", data=body, files=files, headers=key)
                for body in (BODY, BODY, {"prompt": "y"})
            ]
        assert (first.status_code, again.status_code, other.status_code) == (200, 200, 422)
        assert again.json()["id"] == first.json()["id"]


class TestVersions:
    """Rows of another version of the server."""

    @pytest.fixture
    def spoil(self, tmp_path: Path) -> Callable[[str], None]:
        """Change the second of the jobs in the table into what this version cannot read."""

        def do(change: str) -> None:
            with sqlite3.connect(tmp_path / "trident.db") as connection:
                second = "(SELECT id FROM job ORDER BY id LIMIT 1 OFFSET 1)"
                connection.execute(f"UPDATE job SET {change} WHERE id = {second}")  # noqa: S608
            connection.close()

        return do

    @pytest.mark.parametrize("change", ['request = \'{"steps":"all"}\'', "status = 'frozen'"])
    async def test_a_job_that_cannot_be_read_is_no_fault_of_its_owners_and_hides_no_other(
        self, client: httpx.AsyncClient, spoil: Callable[[str], None], change: str
    ) -> None:
        ids = [(await client.post(IMAGES, json=BODY)).headers["x-job-id"] for _ in range(4)]
        spoil(change)
        answer = await client.get(f"/v1/jobs/{ids[1]}")
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (503, "job_unreadable")
        assert ids[1] in error["message"]
        listed = (await client.get("/v1/jobs")).json()
        assert [job["id"] for job in listed["data"]] == [ids[3], ids[2], ids[0]]
        page = (await client.get("/v1/jobs?limit=2&order=asc")).json()
        assert ([job["id"] for job in page["data"]], page["has_more"]) == ([ids[0], ids[2]], True)
        rest = (await client.get(f"/v1/jobs?limit=2&order=asc&after={ids[2]}")).json()
        assert ([job["id"] for job in rest["data"]], rest["has_more"]) == ([ids[3]], False)

    async def test_an_engine_that_cannot_be_read_hides_no_other_and_stops_no_gateway(
        self, database: Database
    ) -> None:
        registry = EngineRegistry(database)
        for owner, learnt in (("other", b"[]"), ("wise", b'[{"lesson": 1}]'), ("ours", b"[]")):
            await registry.announce(a_report(owner, learnt))
        other = gateway.jobs.engines._ENGINES
        await database.execute(
            other.update().where(other.c.owner == "other").values(models='[{"id": 1}]')
        )
        engines = RemoteEngines(registry, StoppedClock(), silent_after_s=30.0)
        async with engines.followed():
            assert (list(engines.specs), engines.devices) == (["shapes"], 4)


class StoppedClock(Clock):
    """It is always ten."""

    def now(self) -> float:
        return 10.0

    async def sleep(self, duration_s: float) -> None:
        raise NotImplementedError


def a_report(owner: str, learnt: bytes) -> EngineReport:
    return EngineReport(
        owner=owner, seen_s=10.0, devices=2, models=(spec_of(),), learnt=learnt, reasons=()
    )


class Connection:
    """A connection to PostgreSQL that is cut as soon as it listens."""

    async def add_listener(self, _channel: str, _hear: object) -> None:
        return

    def is_closed(self) -> bool:
        return True

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109 - as asyncpg has it
        del timeout


class TestConnection:
    """The connection that carries events between processes."""

    async def test_is_tried_again_soon_once_it_has_stood(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asyncpg = pytest.importorskip("asyncpg")
        tries = iter([OSError(), OSError(), OSError(), Connection(), OSError()])
        pauses: list[float] = []
        over = asyncio.Event()

        async def connect(_dsn: str) -> Connection:
            found = next(tries, None)
            if found is None:
                over.set()
                await asyncio.Event().wait()
            if isinstance(found, OSError):
                raise found
            assert found is not None
            return found

        async def sleep(pause_s: float) -> None:
            pauses.append(pause_s)

        monkeypatch.setattr(asyncpg, "connect", connect)
        monkeypatch.setattr("gateway.jobs.carriers.asyncio.sleep", sleep)
        events = PostgresEvents(DatabaseUrl("postgresql+asyncpg://nobody@nowhere/none"))
        async with events.connected():
            await over.wait()
        assert pauses == [0.2, 0.4, 0.8, 0.2, 0.4]


class TestDarkroom:
    """Pictures that wait to be decoded."""

    async def test_beyond_a_bound_no_more_may_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        picture = checked(png(), "image")
        monkeypatch.setattr("gateway.uploads._MOST_WAITING_BYTES", 3 * len(picture.content))
        room, size = Darkroom(), Size(64, 48)
        calls = [asyncio.create_task(room.source(picture, size)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="pictures wait"):
            await room.source(picture, size)
        await asyncio.gather(*calls)
        assert await room.source(picture, size)

    async def test_one_alone_may_be_of_any_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gateway.uploads._MOST_WAITING_BYTES", 1)
        assert await Darkroom().source(checked(png(), "image"), Size(64, 48))
