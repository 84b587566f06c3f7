"""What the runner does for videos: progress that never falls, no trace of what was deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from opentelemetry.trace import NoOpTracer

from engine import MediaFormat, Modality
from gateway.db.session import Database
from gateway.jobs.engines import EngineRegistry
from gateway.jobs.events import InProcessEvents
from gateway.jobs.leases import JobLeases
from gateway.jobs.record import Job, NewJob
from gateway.jobs.run import Runner
from gateway.jobs.state import JobStatus
from gateway.jobs.store import JobStore
from gateway.storage.blobs import BlobStore
from tests.gateway.test_leases import ACME, GLOBEX, a_job
from tests.gateway.test_runner import FakeClock
from tests.support.fake_engine import FakeEngine, video_spec_of


@pytest.fixture
def engine() -> FakeEngine:
    engine = FakeEngine(video_spec_of())
    engine.gate.clear()
    return engine


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def runner(
    database: Database, engine: FakeEngine, clock: FakeClock, tmp_path: Path
) -> AsyncIterator[Runner]:
    runner = Runner(
        engine=engine,
        leases=JobLeases(database, "first"),
        registry=EngineRegistry(database),
        events=InProcessEvents(),
        blobs=BlobStore.in_folder(tmp_path / "artifacts"),
        clock=clock,
        tracer=NoOpTracer(),
        max_concurrent=1,
        drain_s=0.01,
    )
    yield runner
    await runner.close()


def a_video() -> NewJob:
    new = a_job(model="motion")
    return msgspec.structs.replace(
        new, request=msgspec.structs.replace(new.request, media=MediaFormat.MP4)
    )


async def status_of(database: Database, job: NewJob | Job) -> tuple[JobStatus, int]:
    found = await JobStore(database).get(job.id, ACME)
    assert found is not None
    return found.status, found.progress


async def test_progress_follows_the_engine_and_never_falls(
    database: Database, engine: FakeEngine, clock: FakeClock, runner: Runner
) -> None:
    job = await JobStore(database).add(a_video(), queue_limit=9)
    await runner.tick()
    await engine.asked.wait()
    seen = []
    for share in (0.375, 0.2, 0.5, 1.0):
        engine.share = share
        clock.now_s += 1.0
        await runner.tick()
        seen.append((await status_of(database, job))[1])
    assert seen == [37, 37, 50, 99]


async def test_progress_is_kept_when_another_runner_starts_over(
    database: Database, engine: FakeEngine, clock: FakeClock, runner: Runner
) -> None:
    job = await JobStore(database).add(a_video(), queue_limit=9)
    await runner.tick()
    await engine.asked.wait()
    engine.share, clock.now_s = 0.5, 2.0
    await runner.tick()
    successor = JobLeases(database, "second")
    await successor.recover(now_s=99.0)
    await successor.take(1, models=("motion",), now_s=99.0)
    await successor.note_progress({job.id: 20})
    assert await status_of(database, job) == (JobStatus.IN_PROGRESS, 50)
    await JobLeases(database, "first").note_progress({job.id: 80})
    assert await status_of(database, job) == (JobStatus.IN_PROGRESS, 50)


async def test_what_was_deleted_while_it_was_finished_leaves_no_bytes(
    database: Database, engine: FakeEngine, runner: Runner, tmp_path: Path
) -> None:
    store = JobStore(database)
    job = await store.add(a_video(), queue_limit=9)
    await runner.tick()
    await engine.asked.wait()
    await store.delete(job.id, ACME, Modality.VIDEO, now_s=1.0)  # its runner does not hear of it
    engine.gate.set()
    async with asyncio.timeout(5):
        while (await status_of(database, job))[0] is JobStatus.IN_PROGRESS:
            await asyncio.sleep(0.01)
    assert (await status_of(database, job))[0] is JobStatus.CANCELLED
    assert list((tmp_path / "artifacts").rglob("*.mp4")) == []


async def test_a_job_that_was_to_be_cancelled_is_not_run_by_the_next_holder(
    database: Database, engine: FakeEngine, runner: Runner
) -> None:
    store, leases = JobStore(database), JobLeases(database, "other")
    job = await store.add(a_video(), queue_limit=9)
    await leases.take(1, models=("motion",), now_s=0.0)
    await store.request_cancel(job.id, ACME, now_s=1.0)
    await leases.give_all_back()
    await runner.tick()
    async with asyncio.timeout(5):
        while (await status_of(database, job))[0] is not JobStatus.CANCELLED:
            await asyncio.sleep(0.01)
    assert engine.requests == []


async def test_no_tenant_deletes_or_finds_anothers_job(database: Database) -> None:
    store = JobStore(database)
    job = await store.add(a_video(), queue_limit=9)
    assert await store.delete(job.id, GLOBEX, Modality.VIDEO, now_s=1.0) is None
    assert await store.find(job.id, GLOBEX, Modality.VIDEO) is None
    assert await store.find(job.id, ACME, Modality.IMAGE) is None
    assert await store.find(job.id, ACME, Modality.VIDEO) == job
