"""A caller who waits: what is on the disk before it hears, and what it need not read again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gateway.jobs.events import InProcessEvents, JobEnding, JobEvent, Look, bare
from gateway.jobs.record import Job, new_job_id
from gateway.jobs.service import JobService
from gateway.jobs.state import JobStatus
from gateway.jobs.store import JobStore
from gateway.storage.blobs import BlobStore
from tests.gateway.conftest import Serve
from tests.gateway.test_leases import a_job
from tests.support.fake_engine import FakeEngine, video_spec_of

IMAGES = "/v1/images/generations"
BODY = {"prompt": "x", "seed": 1}


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk that has nothing for sure until the event is set."""
    has_all = threading.Event()
    monkeypatch.setattr("gateway.db.write_ahead_log.os.fsync", lambda _file: has_all.wait(30))
    yield has_all
    has_all.set()


@pytest.mark.parametrize("engine", [FakeEngine(video_spec_of())])
async def test_a_job_is_told_once_the_disk_has_it_though_its_work_began_before(
    serve: Serve, engine: FakeEngine, disk: threading.Event
) -> None:
    disk.set()
    async with serve() as client:
        disk.clear()
        call = asyncio.create_task(client.post("/v1/videos", json=BODY))
        await engine.asked.wait()
        done, _ = await asyncio.wait([call], timeout=0.2)
        assert done == set()
        disk.set()
        assert (await call).status_code == 200


async def test_who_leaves_before_the_disk_has_the_job_leaves_no_work_behind(
    serve: Serve, engine: FakeEngine, disk: threading.Event
) -> None:
    engine.gate.clear()
    disk.set()
    async with serve() as client:
        disk.clear()
        call = asyncio.create_task(client.post(IMAGES, json=BODY))
        await engine.asked.wait()
        call.cancel()
        disk.set()
        async with asyncio.timeout(10):
            while not engine.cancelled:
                await asyncio.sleep(0.01)


async def test_pictures_of_this_process_are_answered_without_asking_table_and_store(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_waiting, wait = asyncio.Event(), JobService.wait

    async def waiting(self: JobService, job: Job, **terms: Any) -> Look | None:
        is_waiting.set()
        return await wait(self, job, **terms)

    async def never(*_args: object) -> None:
        raise AssertionError

    first = await client.post(IMAGES, json=BODY)
    monkeypatch.setattr(JobService, "wait", waiting)
    monkeypatch.setattr(JobStore, "get", never)
    monkeypatch.setattr(BlobStore, "get", never)
    engine.gate.clear()
    call = asyncio.create_task(client.post(IMAGES, json=BODY))
    await is_waiting.wait()
    engine.gate.set()
    again = await call
    assert again.json()["data"] == first.json()["data"]
    assert again.headers["x-job-id"] != first.headers["x-job-id"]
    assert "total;dur=" in again.headers["server-timing"]


async def test_who_begins_to_listen_after_the_end_hears_of_it() -> None:
    events, job = InProcessEvents(), new_job_id()
    events.publish(JobEvent(job, JobStatus.IN_PROGRESS))
    events.publish(JobEvent(job, JobStatus.COMPLETED))
    with events.watch(job) as watch, events.watch(new_job_id()) as other:
        assert await watch.next(timeout_s=1) == [JobEvent(job, JobStatus.COMPLETED)]
        assert await other.next(timeout_s=0) == []


async def test_files_go_to_who_waits_for_their_job_and_are_not_kept() -> None:
    events = InProcessEvents()
    ending = an_ending()
    with events.watch(ending.job) as waiting, events.watch() as everything:
        events.publish(ending)
        assert await waiting.next(timeout_s=1) == [ending]
        assert await everything.next(timeout_s=1) == [bare(ending)]
    with events.watch(ending.job) as late:
        assert await late.next(timeout_s=1) == [bare(ending)]
    assert bare(ending) == JobEvent(ending.job, JobStatus.COMPLETED)


def an_ending() -> JobEnding:
    new = a_job()
    job = Job(
        id=new.id,
        tenant=new.tenant,
        status=JobStatus.COMPLETED,
        request=new.request,
        request_id=new.request_id,
        traceparent=None,
        attempts=1,
        cancel_requested=False,
        started_s=1.0,
        finished_s=2.0,
        progress=100,
        error=None,
        timeline=(),
        artifacts=(),
        expires_at_s=3.0,
    )
    return JobEnding(job.id, job.status, look=Look(job, (b"png",)))
