"""Finished files: where they lie, how they are read, and how they go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import gateway.jobs.retention as retention_module
import gateway.jobs.sweep as sweep_module
from gateway.db.session import Database
from gateway.jobs.events import InProcessEvents
from gateway.jobs.leases import JobLeases
from gateway.jobs.record import job_of_video
from gateway.jobs.retention import Retention
from gateway.jobs.store import JobStore
from gateway.storage.blobs import BlobMissingError, BlobStore
from tests.gateway.conftest import Serve
from tests.gateway.test_leases import ACME, MODELS, a_job, an_artifact
from tests.gateway.test_runner import FakeClock
from tests.support.fake_engine import FakeEngine, png_size, video_spec_of
from tests.support.s3 import s3_server

URL = "/v1/images/generations"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """An S3-compatible store that the usual variables lead to."""
    with s3_server() as (endpoint, objects):
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }.items():
            monkeypatch.setenv(name, value)
        yield objects


@pytest.fixture(params=["folder", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "s3":
        request.getfixturevalue("bucket")
    return BlobStore.at("s3://b/pre" if request.param == "s3" else str(tmp_path / "blobs"))


async def test_blobs_are_written_read_in_part_and_removed_by_folder(blobs: BlobStore) -> None:
    await blobs.check_writable()
    for key in ("job_1/a.png", "job_1/stages/encode-1", "job_2/b.png"):
        await blobs.put(key, key.encode())
    assert await blobs.get("job_1/a.png") == b"job_1/a.png"
    assert await blobs.get_range("job_1/a.png", start=4, end=7) == b"1/a"
    await blobs.delete_folder("job_1")
    for key in ("job_1/a.png", "job_1/stages/encode-1"):
        with pytest.raises(BlobMissingError):
            await blobs.get(key)
    assert await blobs.get("job_2/b.png") == b"job_2/b.png"


async def test_links_to_s3_lead_there_and_expire(serve: Serve, bucket: dict[str, bytes]) -> None:
    async with serve(artifacts="s3://b/pre", url_ttl_s=600) as client:
        body = {"prompt": "x", "response_format": "url"}
        url = (await client.post(URL, json=body)).json()["data"][0]["url"]
        inline = (await client.post(URL, json={"prompt": "x"})).json()["data"][0]["b64_json"]
    assert "X-Amz-Expires=600" in url
    assert "X-Amz-Signature=" in url
    assert len(inline) > 0
    async with httpx.AsyncClient() as stranger:
        assert png_size((await stranger.get(url)).content) == (64, 48)
    assert [key for key in bucket if "/stages/" in key] == []


async def test_a_file_answers_ranges_and_head(client: httpx.AsyncClient) -> None:
    body = {"prompt": "x", "response_format": "url"}
    url = (await client.post(URL, json=body)).json()["data"][0]["url"]
    whole = await client.get(url)
    part = await client.get(url, headers={"range": "bytes=1-3"})
    head = await client.head(url)
    outside = await client.get(url, headers={"range": "bytes=99999999-"})
    size = len(whole.content)
    assert (part.status_code, part.content) == (206, b"PNG")
    assert part.headers["content-range"] == f"bytes 1-3/{size}"
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(size)
    assert head.headers["accept-ranges"] == "bytes"
    assert (outside.status_code, outside.headers["content-range"]) == (416, f"bytes */{size}")


async def completed(database: Database, blobs: BlobStore, *, at_s: float) -> Any:
    store, leases = JobStore(database), JobLeases(database, "one", retention_s=100.0)
    await store.add(a_job(), queue_limit=9)
    (job,) = await leases.take(1, models=MODELS, now_s=at_s)
    await blobs.put(f"{job.id}/a.png", b"png")
    await blobs.put(f"{job.id}/stages/diffuse-1", b"left by a runner that died")
    await leases.complete(job, [an_artifact()], (), now_s=at_s)
    return job


async def test_files_go_when_they_have_been_kept_long_enough_and_rows_much_later(
    database: Database, tmp_path: Path
) -> None:
    store, blobs = JobStore(database), BlobStore.in_folder(tmp_path / "blobs")
    retention = Retention(database, blobs, history_s=1000.0)
    job = await completed(database, blobs, at_s=50.0)
    await store.add(a_job(), queue_limit=9)
    found = await store.get(job.id, ACME)
    assert found is not None
    assert found.content_expires_s == 150.0
    assert await retention.remove_content(now_s=149.0) == 0
    assert await retention.remove_content(now_s=151.0) == 1
    assert await retention.remove_content(now_s=151.0) == 0
    found = await store.get(job.id, ACME)
    assert found is not None
    assert (found.status, found.artifacts, found.content_removed_s) == ("completed", (), 151.0)
    for key in ("a.png", "stages/diffuse-1"):
        with pytest.raises(BlobMissingError):
            await blobs.get(f"{job.id}/{key}")
    assert await retention.forget(now_s=1049.0) == 0
    assert await retention.forget(now_s=1051.0) == 1
    assert await store.get(job.id, ACME) is None


async def test_files_that_cannot_be_removed_keep_no_others(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, blobs = JobStore(database), BlobStore.in_folder(tmp_path / "blobs")
    jobs = [await completed(database, blobs, at_s=50.0) for _ in range(3)]
    remove = blobs.delete_folder

    async def delete_folder(folder: str) -> None:
        if folder == jobs[1].id:
            raise PermissionError(folder)
        await remove(folder)

    monkeypatch.setattr(blobs, "delete_folder", delete_folder)
    retention = Retention(database, blobs, history_s=1000.0)
    assert await retention.remove_content(now_s=151.0) == 2
    found = [await store.get(job.id, ACME) for job in jobs]
    assert [job and job.content_removed_s for job in found] == [151.0, None, 151.0]
    monkeypatch.undo()
    assert await retention.remove_content(now_s=152.0) == 1


async def test_a_sweep_tells_that_it_left_something_to_remove(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (retention_module, sweep_module):
        monkeypatch.setattr(module, "BATCH", 2)
    blobs, clock = BlobStore.in_folder(tmp_path / "blobs"), FakeClock()
    for _ in range(3):
        await completed(database, blobs, at_s=50.0)
    clock.now_s = 151.0
    sweeper = sweep_module.Sweeper(
        leases=JobLeases(database, "one"),
        retention=Retention(database, blobs, history_s=1000.0),
        events=InProcessEvents(),
        clock=clock,
    )
    assert [await sweeper.sweep() for _ in range(2)] == [False, True]
    assert await blobs.keys("") == []


async def test_an_expired_video_says_so_and_its_content_is_missing(
    serve: Serve, engine: FakeEngine
) -> None:
    spec = video_spec_of()
    engine._specs = {spec.id: spec}
    async with serve(retention_s=0.1, lease_s=0.6) as client:
        video = (await client.post("/v1/videos", json={"prompt": "x"})).json()["id"]
        assert job_of_video(video) is not None
        code = None
        async with asyncio.timeout(20):
            while code != "content_expired":  # 404 without a code between bytes and row
                await asyncio.sleep(0.05)
                content = await client.get(f"/v1/videos/{video}/content")
                code = content.json()["error"]["code"] if content.status_code >= 400 else None
        shown = (await client.get(f"/v1/videos/{video}")).json()
    assert content.status_code == 404
    assert (shown["status"], shown["progress"]) == ("completed", 100)
    assert shown["expires_at"] >= shown["completed_at"]
