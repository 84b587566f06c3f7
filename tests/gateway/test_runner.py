"""The runner's life: stop, crash, start again; seen through the table only."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec import structs
from opentelemetry.trace import NoOpTracer
from sqlalchemy import Engine, event

from engine import EngineCrashedError, Source, StageKind
from engine.types import DeviceId, HandoffRef, NodeId
from gateway.db.session import Database
from gateway.db.url import DatabaseUrl
from gateway.jobs.engines import EngineRegistry
from gateway.jobs.events import InProcessEvents, JobEvent
from gateway.jobs.journal import JobJournal
from gateway.jobs.leases import JobLeases
from gateway.jobs.record import Candidate, Job, JobId, StageDecision
from gateway.jobs.retention import Retention
from gateway.jobs.rows import new_job_of
from gateway.jobs.run import Runner
from gateway.jobs.state import JobStatus
from gateway.jobs.store import JobStore
from gateway.jobs.sweep import Sweeper
from gateway.storage.blobs import BlobMissingError, BlobStore
from tests.gateway.conftest import Serve
from tests.gateway.test_leases import ACME, a_job
from tests.support.fake_engine import FakeEngine


async def draw(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/v1/images/generations", json={"prompt": "x"})


def rows(data_dir: Path, columns: str) -> list[Any]:
    with sqlite3.connect(data_dir / "trident.db") as connection:
        found = connection.execute(f"SELECT {columns} FROM job").fetchall()  # noqa: S608
    connection.close()
    return found


async def test_a_stopping_server_sends_callers_away_and_keeps_their_jobs(
    serve: Serve, engine: FakeEngine, tmp_path: Path
) -> None:
    engine.gate.clear()
    async with serve() as client:
        call = asyncio.create_task(draw(client))
        await engine.asked.wait()
    response = await call
    assert response.status_code == 503
    assert "shutting down" in response.json()["error"]["message"]
    assert engine.closed
    assert rows(tmp_path, "status, attempts, lease_owner") == [("queued", 0, None)]


async def test_a_job_left_in_the_queue_is_run_after_a_restart(
    serve: Serve, engine: FakeEngine, tmp_path: Path
) -> None:
    engine.gate.clear()
    async with serve() as client:
        call = asyncio.create_task(draw(client))
        await engine.asked.wait()
    await call
    engine.gate.set()
    async with serve(max_concurrent=1) as client:  # one after the other: the old job first
        await draw(client)
    assert rows(tmp_path, "status") == [("completed",), ("completed",)]


async def test_at_most_max_concurrent_jobs_are_in_the_engine(
    serve: Serve, engine: FakeEngine
) -> None:
    engine.gate.clear()
    async with serve(max_concurrent=2) as client:
        calls = [asyncio.create_task(draw(client)) for _ in range(5)]
        while len(engine.requests) < 2:
            engine.asked.clear()
            await engine.asked.wait()
        assert len(engine.requests) == 2
        engine.gate.set()
        responses = await asyncio.gather(*calls)
    assert [response.status_code for response in responses] == [200] * 5


async def test_work_stops_when_the_callers_task_is_cancelled(
    serve: Serve, engine: FakeEngine, tmp_path: Path
) -> None:
    engine.gate.clear()
    async with serve() as client:
        call = asyncio.create_task(draw(client))
        await engine.asked.wait()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    assert engine.cancelled == [engine.requests[0].id]
    assert rows(tmp_path, "status") == [("cancelled",)]


async def test_work_stops_when_the_caller_disconnects(
    serve: Serve, engine: FakeEngine, tmp_path: Path
) -> None:
    engine.gate.clear()
    statuses = []
    bodies = iter([b'{"prompt": "x"}'])

    async def receive() -> Any:
        if (body := next(bodies, None)) is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        await engine.asked.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    async with serve() as client:
        transport = client._transport
        assert isinstance(transport, httpx.ASGITransport)
        await transport.app(a_scope(), receive, send)
    assert statuses[0] == 499
    assert rows(tmp_path, "status") == [("cancelled",)]


def a_scope() -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/images/generations",
        "raw_path": b"/v1/images/generations",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "server": ("localhost", 80),
    }


class FakeClock:
    """Time that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def now(self) -> float:
        return self.now_s

    async def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s


async def test_a_machine_that_slept_counts_no_job_of_its_own_as_lost(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.gate.clear()
    clock, database = FakeClock(), Database(DatabaseUrl.in_folder(tmp_path))
    blobs = BlobStore.in_folder(tmp_path / "artifacts")
    await database.open()
    await JobStore(database).add(a_job(), queue_limit=9)
    leases, events = JobLeases(database, "one", lease_s=30.0), InProcessEvents()
    runner = Runner(
        engine=engine,
        leases=leases,
        registry=EngineRegistry(database),
        events=events,
        blobs=blobs,
        clock=clock,
        tracer=NoOpTracer(),
        max_concurrent=1,
    )
    sweeper = Sweeper(
        leases=leases,
        retention=Retention(database, blobs, history_s=9e9),
        events=events,
        clock=clock,
        renew=runner.renew,
    )
    await runner.tick()
    await engine.asked.wait()
    clock.now_s = 40.0
    await sweeper.sweep()
    assert rows(tmp_path, "status, lease_owner, attempts") == [("in_progress", "one", 1)]
    await runner.close()
    await database.close()


async def test_a_runner_that_lost_its_lease_stops_the_work(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.gate.clear()
    clock, database = FakeClock(), Database(DatabaseUrl.in_folder(tmp_path))
    await database.open()
    await JobStore(database).add(a_job(), queue_limit=9)
    runner = Runner(
        engine=engine,
        leases=JobLeases(database, "slow", lease_s=30.0),
        registry=EngineRegistry(database),
        events=InProcessEvents(),
        blobs=BlobStore.in_folder(tmp_path / "artifacts"),
        clock=clock,
        tracer=NoOpTracer(),
        max_concurrent=1,
        drain_s=0.01,
    )
    await runner.tick()
    await engine.asked.wait()
    clock.now_s = 31.0  # the runner was stuck for longer than its lease
    await JobLeases(database, "quick").recover(now_s=clock.now_s)
    (again,) = await JobLeases(database, "quick").take(1, models=("shapes",), now_s=clock.now_s)
    await runner.tick()
    await runner.close()
    await database.close()
    assert engine.cancelled == [engine.requests[0].id]
    assert rows(tmp_path, "status, lease_owner, attempts") == [("in_progress", "quick", 2)]
    assert str(again.id) == engine.requests[0].id


@pytest.mark.parametrize("failure", [None, ValueError("x")])
async def test_a_late_runner_leaves_its_successor_what_was_kept_and_tells_of_no_end(
    engine: FakeEngine, tmp_path: Path, failure: Exception | None
) -> None:
    engine.failure = failure
    engine.gate.clear()
    (tmp_path / "encode").write_bytes(b"embedding")
    engine.hand_offs[StageKind.ENCODE] = HandoffRef(NodeId("x"), str(tmp_path / "encode"), 9)
    database, events = Database(DatabaseUrl.in_folder(tmp_path)), InProcessEvents()
    await database.open()
    store, successor = JobStore(database), JobLeases(database, "successor")
    job = await store.add(a_job(), queue_limit=9)
    runner = a_runner(engine, database, tmp_path, drain_s=60.0, events=events)
    await runner.tick()
    async with asyncio.timeout(10):
        while not (kept := (await job_of(store, job.id)).kept):
            await asyncio.sleep(0.01)
    await successor.recover(now_s=31.0)
    assert len(await successor.take(1, models=("shapes",), now_s=31.0)) == 1
    engine.gate.set()
    await runner.close()
    await database.close()
    assert await BlobStore.in_folder(tmp_path / "artifacts").get(kept[0].blob) == b"embedding"
    assert job.id not in events._ends
    assert rows(tmp_path, "status, lease_owner") == [("in_progress", "successor")]


async def test_a_job_that_comes_back_to_the_runner_that_still_runs_it_is_run_once(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.gate.clear()
    database, events = Database(DatabaseUrl.in_folder(tmp_path)), InProcessEvents()
    await database.open()
    job = await JobStore(database).add(a_job(), queue_limit=9)
    runner = a_runner(engine, database, tmp_path, drain_s=60.0, events=events)
    runner.start()
    await engine.asked.wait()
    engine.asked.clear()
    # As after a while without the database: the lease ran out before it could be renewed.
    await JobLeases(database, "sweeper").recover(now_s=31.0)
    events.publish(JobEvent(job.id, JobStatus.QUEUED))
    async with asyncio.timeout(10):
        while rows(tmp_path, "attempts") != [(2,)]:
            await asyncio.sleep(0.01)
    engine.gate.set()
    await runner.close()
    await database.close()
    assert [request.id for request in engine.requests] == [job.id]
    assert rows(tmp_path, "status, error") == [("completed", None)]


async def test_a_runner_that_stops_begins_nothing_that_was_still_being_fetched(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.gate.clear()
    database = Database(DatabaseUrl.in_folder(tmp_path))
    await database.open()
    new = a_job()
    source = Source(image="source.png", strength=1.0, schedule_steps=4)
    new = structs.replace(new, request=structs.replace(new.request, source=source))
    await JobStore(database).add(new, queue_limit=9)
    asked, gate = asyncio.Event(), asyncio.Event()

    async def get(_: BlobStore, key: str) -> bytes:
        asked.set()
        await gate.wait()
        return key.encode()

    monkeypatch.setattr(BlobStore, "get", get)
    runner = a_runner(engine, database, tmp_path, drain_s=0.01)
    await runner.tick()
    await asked.wait()
    closing = asyncio.create_task(runner.close())
    while not runner._closing:
        await asyncio.sleep(0.01)
    gate.set()
    async with asyncio.timeout(10):
        await closing
    await database.close()
    assert engine.requests == []
    assert rows(tmp_path, "status, attempts, lease_owner") == [("queued", 0, None)]


async def test_the_row_is_written_before_work_starts(
    serve: Serve, engine: FakeEngine, tmp_path: Path
) -> None:
    engine.gate.clear()
    async with serve() as client:
        call = asyncio.create_task(draw(client))
        await engine.asked.wait()
        ((status, tenant, traceparent, request),) = rows(
            tmp_path, "status, tenant, traceparent, request"
        )
        engine.gate.set()
        await call
    assert (status, tenant) == ("in_progress", "default")
    assert traceparent.startswith("00-")
    assert '"prompt":"x"' in request


async def test_a_job_that_brings_the_engine_down_is_given_up_after_three_tries(
    serve: Serve, engine: FakeEngine, tmp_path: Path
) -> None:
    engine.failure = EngineCrashedError("The engine stopped on an internal error.")
    async with serve() as client:
        response = await draw(client)
    assert response.status_code == 500
    assert response.headers["x-should-retry"] == "false"
    assert len(engine.requests) == 3
    assert rows(tmp_path, "status, attempts") == [("failed", 3)]


async def test_no_job_is_leased_while_the_engine_is_down(
    serve: Serve, engine: FakeEngine, tmp_path: Path
) -> None:
    engine.is_down = True
    async with serve() as client:
        call = asyncio.create_task(draw(client))
        while not rows(tmp_path, "status"):
            await asyncio.sleep(0.01)
        assert rows(tmp_path, "status, attempts") == [("queued", 0)]
        engine.is_down = False
        assert (await call).status_code == 200


async def test_a_server_that_stops_first_removes_what_it_kept_of_jobs_that_are_over(
    serve: Serve, engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "encode.safetensors"
    file.write_bytes(b"embeddings")
    engine.hand_offs[StageKind.ENCODE] = HandoffRef(NodeId("encode"), str(file), 10)
    removing, may, delete_folder = asyncio.Event(), asyncio.Event(), BlobStore.delete_folder

    async def slow(blobs: BlobStore, folder: str) -> None:
        removing.set()
        await may.wait()
        await delete_folder(blobs, folder)

    monkeypatch.setattr(BlobStore, "delete_folder", slow)
    engine.gate.clear()
    async with serve() as client:
        call = asyncio.create_task(draw(client))
        async with asyncio.timeout(10):
            while rows(tmp_path, "checkpoint") in ([], [(None,)]):
                await asyncio.sleep(0.02)
        kept = list((tmp_path / "artifacts").rglob("encode-*"))
        engine.gate.set()
        assert (await call).status_code == 200
        await removing.wait()
        asyncio.get_running_loop().call_later(1.0, may.set)
    assert [file.exists() for file in kept] == [False]


async def test_a_picture_that_nobody_is_before_is_added_with_its_lease(
    serve: Serve, tmp_path: Path
) -> None:
    written: list[str] = []

    def note(*call: Any) -> None:
        verb, table = call[2].replace("INSERT INTO", "INSERT").split()[:2]
        if verb in {"INSERT", "UPDATE", "WITH"} and table != "engine":
            written.append(f"{verb} {table}")

    async with serve() as client:
        await draw(client)  # the runner is up now
        event.listen(Engine, "before_cursor_execute", note)
        await draw(client)
        event.remove(Engine, "before_cursor_execute", note)
    assert written == ["INSERT job", "UPDATE job", "INSERT artifact"]
    assert rows(tmp_path, "status, attempts") == [("completed", 1)] * 2


async def test_a_runner_offers_no_place_that_it_has_not(database: Database, tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.gate.clear()
    runner = a_runner(engine, database, tmp_path, drain_s=0.01, max_concurrent=2)
    store = JobStore(database)
    with runner.offer() as early:
        assert early is None  # nobody has asked the engine yet
    await runner.tick()
    with runner.offer() as first, runner.offer() as second, runner.offer() as third:
        assert first is not None
        assert (second is None, third is None) == (False, True)
        runner.begin(await store.add(a_job(), queue_limit=9, lease=first))
    await engine.asked.wait()
    with runner.offer() as fourth, runner.offer() as fifth:
        assert (fourth is None, fifth is None) == (False, True)
    runner.drain(lambda: None)
    with runner.offer() as late:
        assert late is None
    await runner.close()
    assert (await job_of(store, JobId(engine.requests[0].id))).status is JobStatus.QUEUED


async def test_a_job_that_was_leased_while_its_runner_closed_is_given_back(
    database: Database, tmp_path: Path
) -> None:
    engine, store = FakeEngine(), JobStore(database)
    runner = a_runner(engine, database, tmp_path, drain_s=0.01)
    await runner.tick()
    with runner.offer() as lease:
        job = await store.add(a_job(), queue_limit=9, lease=lease)
        await runner.close()
        runner.begin(job)
    assert engine.requests == []
    found = await job_of(store, job.id)
    assert (found.status, found.attempts) == (JobStatus.QUEUED, 0)


async def test_what_a_dead_holder_had_finished_is_not_done_again(
    database: Database, tmp_path: Path
) -> None:
    first, second, clock = FakeEngine(), FakeEngine(), FakeClock()
    first.gate.clear()
    for kind in (StageKind.ENCODE, StageKind.DIFFUSE):
        file = tmp_path / f"{kind}.safetensors"
        file.write_bytes(b"latents")
        first.hand_offs[kind] = HandoffRef(NodeId(kind), str(file), 7)
    first.decisions = (a_decision(),)
    store, blobs = JobStore(database), BlobStore.in_folder(tmp_path / "artifacts")

    def runner(engine: FakeEngine, owner: str) -> Runner:
        return Runner(
            engine=engine,
            leases=JobLeases(database, owner),
            registry=EngineRegistry(database),
            events=InProcessEvents(),
            blobs=blobs,
            clock=clock,
            tracer=NoOpTracer(),
            max_concurrent=1,
        )

    job = await store.add(a_job(), queue_limit=9)
    dead, alive = runner(first, "dead"), runner(second, "alive")
    await dead.tick()
    async with asyncio.timeout(10):
        while len(kept := (await job_of(store, job.id)).kept) < 2:
            await asyncio.sleep(0.01)
    assert [await blobs.get(stage.blob) for stage in kept] == [b"latents"] * 2
    clock.now_s = 31.0
    await JobLeases(database, "sweeper").recover(now_s=clock.now_s)
    await alive.tick()
    async with asyncio.timeout(10):
        while (await job_of(store, job.id)).status is not JobStatus.COMPLETED:
            await asyncio.sleep(0.01)
    await alive.close()
    await dead.close()
    finished = await job_of(store, job.id)
    assert set(second.resumed[0]) == {"encode", "diffuse"}
    assert (finished.kept, finished.schedule) == ((), first.decisions)
    with pytest.raises(BlobMissingError):
        await blobs.get(kept[0].blob)


async def test_a_launch_is_explained_by_what_was_known_then_and_a_wait_by_what_is_known_now(
    tmp_path: Path,
) -> None:
    engine, job = FakeEngine(), new_job_of(a_job())
    engine.requests.append(job.request)
    database = Database(DatabaseUrl.in_folder(tmp_path))
    blobs, leases = BlobStore.in_folder(tmp_path), JobLeases(database, "one")
    journal = JobJournal(job, engine=engine, blobs=blobs, leases=leases)

    def last(decision: StageDecision) -> StageDecision:
        engine.decisions = (decision,)
        journal.note_decisions()
        (found,) = journal.schedule
        return found

    waits = structs.replace(a_decision(), launched=False, why="no idle device", expected_s=None)
    later, launch = structs.replace(waits, as_of_s=2.0, slack_s=8.0), a_decision()
    assert last(waits) == waits
    assert last(later) == later
    assert last(launch) == launch
    assert last(structs.replace(launch, as_of_s=9.0, slack_s=-1.0)) == launch
    again = structs.replace(launch, as_of_s=9.0, devices=(DeviceId("cpu:7"),))
    assert last(again) == again
    await database.close()


async def job_of(store: JobStore, job: JobId) -> Job:
    found = await store.get(job, ACME)
    assert found is not None
    return found


def a_decision() -> StageDecision:
    return StageDecision(
        node=NodeId("diffuse"),
        stage=StageKind.DIFFUSE,
        as_of_s=0.0,
        launched=True,
        why="on time at degree 1",
        devices=(DeviceId("cpu:1"),),
        batch=1,
        expected_s=4.0,
        slack_s=10.0,
        candidates=(Candidate(degree=1, expected_s=4.0, device_s=4.0, slack_s=10.0),),
    )


async def test_a_drain_lets_jobs_end_and_leases_no_others(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.gate.clear()
    database = Database(DatabaseUrl.in_folder(tmp_path))
    await database.open()
    store = JobStore(database)
    await store.add(a_job(), queue_limit=9)
    runner = a_runner(engine, database, tmp_path, drain_s=60.0)
    await runner.tick()
    await engine.asked.wait()
    done = asyncio.Event()
    runner.drain(done.set)
    assert runner.readiness() == ("The server is shutting down.",)
    await store.add(a_job(), queue_limit=9)
    await runner.tick()
    engine.gate.set()
    await done.wait()
    await runner.close()
    await database.close()
    assert not engine.suspended
    assert sorted(rows(tmp_path, "status, attempts")) == [("completed", 1), ("queued", 0)]


async def test_what_a_drain_cannot_wait_for_is_saved_and_queued_again(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.gate.clear()
    database = Database(DatabaseUrl.in_folder(tmp_path))
    await database.open()
    await JobStore(database).add(a_job(), queue_limit=9)
    runner = a_runner(engine, database, tmp_path, drain_s=0.01)
    await runner.tick()
    await engine.asked.wait()
    await runner.close()
    await database.close()
    assert engine.suspended
    assert rows(tmp_path, "status, attempts, lease_owner") == [("queued", 0, None)]


def a_runner(
    engine: FakeEngine,
    database: Database,
    folder: Path,
    *,
    drain_s: float,
    events: InProcessEvents | None = None,
    max_concurrent: int = 9,
) -> Runner:
    return Runner(
        engine=engine,
        leases=JobLeases(database, "mine", lease_s=30.0),
        registry=EngineRegistry(database),
        events=events or InProcessEvents(),
        blobs=BlobStore.in_folder(folder / "artifacts"),
        clock=FakeClock(),
        tracer=NoOpTracer(),
        max_concurrent=max_concurrent,
        drain_s=drain_s,
    )
