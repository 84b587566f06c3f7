"""The same request twice is one job: by the caller's key, or by the SDK's own count of retries."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import msgspec
import pytest

from gateway.auth.keys import parse_keys
from gateway.db.session import Database
from gateway.jobs.entry import KEY_LIFE_S, RETRY_LIFE_S, KeyReusedError
from gateway.jobs.record import NewJob, new_job_id
from gateway.jobs.store import JobStore
from gateway.schemas.images import (
    Extensions,
    ImageEditBody,
    ImageGenerationBody,
    ImageVariationBody,
)
from gateway.schemas.videos import VideoBody, VideoEditBody
from tests.gateway.conftest import Serve
from tests.gateway.test_leases import ACME, GLOBEX, a_job
from tests.support.fake_engine import FakeEngine, spec_of, video_spec_of

IMAGES, VIDEOS = "/v1/images/generations", "/v1/videos"
KEY = {"idempotency-key": "order-1"}


def retry(count: int) -> dict[str, str]:
    return {"x-stainless-retry-count": str(count)}


async def draw(client: httpx.AsyncClient, prompt: str = "x", **headers: str) -> httpx.Response:
    return await client.post(IMAGES, json={"prompt": prompt}, headers=headers)


async def test_the_same_key_and_body_give_the_same_answer(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    first = await client.post(IMAGES, json={"prompt": "x", "n": 2}, headers=KEY)
    again = await client.post(IMAGES, json={"n": 2, "prompt": "x"}, headers=KEY)
    assert again.json() == first.json()
    assert again.headers["x-job-id"] == first.headers["x-job-id"]
    assert len(engine.requests) == 1


@pytest.mark.parametrize(
    "body", [ImageGenerationBody, ImageEditBody, ImageVariationBody, VideoBody, VideoEditBody]
)
def test_what_a_body_does_not_say_is_no_part_of_it_so_a_version_with_more_fields_knows_it_again(
    body: type[Extensions],
) -> None:
    sent = msgspec.json.decode(b'{"prompt": "x", "model": null}', type=body)
    assert msgspec.json.encode(sent, order="deterministic") == b'{"prompt":"x"}'


async def test_another_body_with_the_same_key_is_refused_and_not_to_be_sent_again(
    client: httpx.AsyncClient,
) -> None:
    await client.post(IMAGES, json={"prompt": "x"}, headers=KEY)
    refused = await client.post(IMAGES, json={"prompt": "y"}, headers=KEY)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (422, "idempotency_key_reused")
    assert error["type"] == "invalid_request_error"


async def test_a_key_counts_for_one_route_and_one_tenant(serve: Serve, engine: FakeEngine) -> None:
    engine._specs = {spec.id: spec for spec in (spec_of(), video_spec_of())}
    async with serve(keys=parse_keys("acme:sk-acme-1234,globex:sk-globex-1")) as client:
        answers = [
            await client.post(
                route,
                json={"prompt": "x"},
                headers={**KEY, "authorization": f"Bearer {key}"},
            )
            for key in ("sk-acme-1234", "sk-globex-1")
            for route in (IMAGES, VIDEOS)
        ]
    assert [answer.status_code for answer in answers] == [200] * 4
    ids = {answer.headers.get("x-job-id", answer.json().get("id")) for answer in answers}
    assert len(ids) == 4


async def test_a_request_that_was_refused_does_not_use_its_key_up(
    client: httpx.AsyncClient,
) -> None:
    assert (await client.post(IMAGES, json={"prompt": ""}, headers=KEY)).status_code == 400
    assert (await client.post(IMAGES, json={"prompt": "x"}, headers=KEY)).status_code == 200


@pytest.mark.parametrize("key", ["", "x" * 256, "smile \u263a".encode().decode("latin-1")])
async def test_a_key_that_is_none_is_refused(client: httpx.AsyncClient, key: str) -> None:
    headers = {"idempotency-key": key.encode("latin-1")}
    answer = await client.post(IMAGES, json={"prompt": "x"}, headers=headers)  # type: ignore[arg-type]
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_idempotency_key")


async def test_who_comes_while_it_runs_waits_for_the_same_pictures(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.gate.clear()
    first = asyncio.create_task(draw(client, **KEY))
    await engine.asked.wait()
    second = asyncio.create_task(draw(client, **KEY))
    await asyncio.sleep(0.1)
    engine.gate.set()
    assert (await first).json() == (await second).json()
    assert len(engine.requests) == 1


async def test_a_caller_who_leaves_does_not_stop_the_work_of_one_who_stays(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.gate.clear()
    first = asyncio.create_task(draw(client, **retry(0)))
    await engine.asked.wait()
    first.cancel()
    second = await asyncio.gather(first, _draw_soon(client, engine), return_exceptions=True)
    assert second[1].status_code == 200  # type: ignore[union-attr]
    assert (engine.cancelled, len(engine.requests)) == ([], 1)


async def _draw_soon(client: httpx.AsyncClient, engine: FakeEngine) -> httpx.Response:
    """As the SDK does: half a second later, with its count."""
    await asyncio.sleep(0.5)
    call = asyncio.create_task(draw(client, **retry(1)))
    await asyncio.sleep(2.5)  # until after the first caller's time to come back
    engine.gate.set()
    return await call


async def test_a_caller_who_does_not_come_back_leaves_no_work_behind(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.gate.clear()
    call = asyncio.create_task(draw(client, **retry(0)))
    await engine.asked.wait()
    call.cancel()
    async with asyncio.timeout(10):
        while not engine.cancelled:
            await asyncio.sleep(0.05)
    engine.gate.set()
    assert (await draw(client, **retry(1))).status_code == 200
    assert len(engine.requests) == 2


async def test_an_sdks_silent_retry_of_a_finished_request_draws_nothing_new(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    first = await draw(client, **retry(0))
    again = await draw(client, **retry(1))
    assert again.json() == first.json()
    assert len(engine.requests) == 1


async def test_two_equal_wishes_are_two_jobs_and_so_are_retries_of_another_body(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await draw(client, **retry(0))
    await draw(client, **retry(0))
    await draw(client, "y", **retry(1))
    assert len(engine.requests) == 3


async def test_a_retried_video_is_one_video(serve: Serve, engine: FakeEngine) -> None:
    spec = video_spec_of()
    engine._specs = {spec.id: spec}
    async with serve() as client:
        form: dict[str, Any] = {"files": {"prompt": (None, "x"), "seconds": (None, "2")}}
        first = await client.post(VIDEOS, **form, headers=retry(0))
        again = await client.post(VIDEOS, **form, headers=retry(2))  # another boundary
        other = await client.post(VIDEOS, **form, headers=retry(0))
    assert first.json()["id"] == again.json()["id"] != other.json()["id"]


def keyed(**changes: Any) -> NewJob:
    job = a_job()
    fields = {"key": "k" * 64, "fingerprint": "f" * 64, "waiters": 1}
    return msgspec.structs.replace(job, **{**fields, **changes})


async def test_of_equal_requests_at_once_one_makes_the_job(database: Database) -> None:
    other = Database(database.url)
    stores = [JobStore(database), JobStore(other)]
    jobs = await asyncio.gather(*(stores[i % 2].add(keyed(), queue_limit=9) for i in range(8)))
    assert len({job.id for job in jobs}) == 1
    assert max(job.waiters for job in jobs) == 8
    await other.close()


async def test_keys_are_a_tenants_own_and_end_after_a_day(database: Database) -> None:
    store, now_s = JobStore(database), 1e10
    first = await store.add(keyed(), queue_limit=9, now_s=0.0)
    assert (await store.add(keyed(), queue_limit=9, now_s=0.0)).id == first.id
    assert (await store.add(keyed(tenant=GLOBEX), queue_limit=9)).tenant == GLOBEX
    with pytest.raises(KeyReusedError):
        await store.add(keyed(fingerprint="g" * 64), queue_limit=9, now_s=0.0)
    later = await store.add(keyed(fingerprint="g" * 64), queue_limit=9, now_s=now_s + KEY_LIFE_S)
    assert later.id != first.id


@pytest.mark.parametrize(
    "change", [{"fingerprint": "g" * 64}, {"tenant": GLOBEX}, {"retry_count": 0}, {"key": "x"}]
)
async def test_a_retry_finds_only_the_same_tenants_same_request(
    database: Database, change: dict[str, Any]
) -> None:
    store = JobStore(database)
    first = await store.add(keyed(key=None), queue_limit=9)
    same = await store.add(keyed(key=None, retry_count=1), queue_limit=9)
    other = await store.add(keyed(**{"key": None, "retry_count": 2, **change}), queue_limit=9)
    late = await store.add(keyed(key=None, retry_count=2), queue_limit=9, now_s=1e10 + RETRY_LIFE_S)
    assert same.id == first.id
    assert first.id not in {other.id, late.id}


async def test_a_cancelled_jobs_key_is_free_again(database: Database) -> None:
    store = JobStore(database)
    first = await store.add(keyed(), queue_limit=9)
    assert await store.leave(first.id, GLOBEX, now_s=1.0) is None
    assert await store.leave(first.id, ACME, now_s=1.0) is not None
    assert (await store.add(keyed(), queue_limit=9)).id != first.id
    assert await store.leave(new_job_id(), ACME, now_s=1.0) is None
