"""`/v1/jobs`: where a job stands, why, and what can be done about it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from engine import StageFailedError
from gateway.auth.keys import parse_keys
from tests.gateway.conftest import Serve
from tests.gateway.test_runner import a_decision
from tests.support.fake_engine import FakeEngine, png_size, spec_of, video_spec_of

BODY = {"prompt": "a star"}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(spec_of(), video_spec_of())


async def video(client: httpx.AsyncClient, **fields: Any) -> str:
    answer = await client.post("/v1/videos", json={**BODY, **fields})
    return str(answer.json()["id"]).replace("video_", "job_")


async def job(client: httpx.AsyncClient, identifier: str) -> dict[str, Any]:
    answer = await client.get(f"/v1/jobs/{identifier}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def until(client: httpx.AsyncClient, identifier: str, status: str) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while (found := await job(client, identifier))["status"] != status:
            await asyncio.sleep(0.02)
    return found


async def test_a_pictures_job_tells_its_stages_and_its_outputs(client: httpx.AsyncClient) -> None:
    drawn = await client.post("/v1/images/generations", json={**BODY, "n": 2, "seed": 7})
    found = await job(client, drawn.headers["x-job-id"])
    assert (found["object"], found["status"], found["progress"]) == ("job", "completed", 100)
    assert (found["modality"], found["n"], found["size"]) == ("image", 2, "64x48")
    assert [stage["stage"] for stage in found["stages"]] == ["encode", "diffuse", "decode"]
    assert found["stages"][1]["device"] == "cpu:0"
    assert found["stages"][1]["run_s"] == 0.1
    assert (found["queue"], found["eta"], found["error"]) == (None, None, None)
    assert [output["seed"] for output in found["outputs"]] == ["7", "8"]
    file = await client.get(found["outputs"][1]["url"])
    assert png_size(file.content) == (64, 48)


async def test_pictures_videos_and_their_jobs_tell_where_the_time_went(
    client: httpx.AsyncClient,
) -> None:
    drawn = await client.post("/v1/images/generations", json=BODY)
    again = await client.get(f"/v1/jobs/{drawn.headers['x-job-id']}")
    assert again.headers["server-timing"] == drawn.headers["server-timing"]
    assert "diffuse;dur=110.0" in again.headers["server-timing"]
    filmed = await video(client)
    await until(client, filmed, "completed")
    shown = await client.get(f"/v1/videos/{filmed.replace('job_', 'video_')}")
    same = await client.get(f"/v1/jobs/{filmed}")
    assert shown.headers["server-timing"] == same.headers["server-timing"]


async def test_a_waiting_job_tells_its_place_and_when_it_should_be_finished(
    serve: Serve, engine: FakeEngine
) -> None:
    engine.gate.clear()
    async with serve(max_concurrent=1) as client:
        jobs = [await video(client, num_inference_steps=8) for _ in range(3)]
        await until(client, jobs[0], "in_progress")
        first, *waiting = [await job(client, identifier) for identifier in jobs]
    assert first["queue"] is None
    assert [found["queue"] for found in waiting] == [
        {"position": 1, "work_s": 8.0},
        {"position": 2, "work_s": 16.0},
    ]
    for found, least_s, most_s in ((first, 8, 12), (waiting[0], 8, 24), (waiting[1], 8, 36)):
        eta, created = found["eta"], first["created_at"]
        assert eta["earliest_at"] == pytest.approx(created + least_s, abs=3)
        assert eta["latest_at"] == pytest.approx(created + most_s, abs=3)


async def test_the_schedule_explains_the_last_decisions(serve: Serve, engine: FakeEngine) -> None:
    engine.gate.clear()
    engine.decisions = (a_decision(),)
    async with serve(max_concurrent=1) as client:
        running, waiting = await video(client), await video(client)
        await until(client, running, "in_progress")
        async with asyncio.timeout(10):
            while not (found := (await client.get(f"/v1/jobs/{running}/schedule")).json())[
                "decisions"
            ]:
                await asyncio.sleep(0.05)
        behind = (await client.get(f"/v1/jobs/{waiting}/schedule")).json()
    decision = found["decisions"][0]
    assert (decision["outcome"], decision["why"]) == ("launched", "on time at degree 1")
    assert decision["candidates"] == [
        {"degree": 1, "expected_s": 4.0, "device_s": 4.0, "slack_s": 10.0}
    ]
    assert (decision["devices"], decision["slack_s"]) == (["cpu:1"], 10.0)
    assert found["predicted_s"] == found["work_s"] == 8.0
    assert behind["decisions"] == []
    assert "0 jobs with an earlier deadline" in behind["why"]


async def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_at_its_next_step(
    serve: Serve, engine: FakeEngine
) -> None:
    engine.gate.clear()
    async with serve(max_concurrent=1) as client:
        running, waiting = await video(client), await video(client)
        await until(client, running, "in_progress")
        at_once = (await client.post(f"/v1/jobs/{waiting}/cancel")).json()
        soon = (await client.post(f"/v1/jobs/{running}/cancel")).json()
        over = await until(client, running, "cancelled")
        again = (await client.post(f"/v1/jobs/{running}/cancel")).json()
    assert (at_once["status"], at_once["error"]["code"]) == ("cancelled", "cancelled")
    assert (soon["status"], soon["cancel_requested"]) == ("in_progress", True)
    assert again == over
    assert engine.cancelled == [running]


async def test_jobs_are_listed_page_by_page_and_by_what_they_are(
    client: httpx.AsyncClient,
) -> None:
    pictures = [
        (await client.post("/v1/images/generations", json=BODY)).headers["x-job-id"]
        for _ in range(3)
    ]
    clip = await video(client)
    await until(client, clip, "completed")

    async def ids(query: str) -> tuple[list[str], bool]:
        page = (await client.get(f"/v1/jobs{query}")).json()
        return [found["id"] for found in page["data"]], page["has_more"]

    assert await ids("") == ([clip, *reversed(pictures)], False)
    assert await ids("?limit=2") == ([clip, pictures[2]], True)
    assert await ids(f"?limit=2&after={pictures[2]}") == ([pictures[1], pictures[0]], False)
    assert await ids("?order=asc&modality=image&limit=1") == ([pictures[0]], True)
    assert await ids("?status=failed") == ([], False)


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("after=nonsense", "after"), ("status=done", "status")],
)
async def test_a_wrong_query_names_its_parameter(
    client: httpx.AsyncClient, query: str, param: str
) -> None:
    answer = await client.get(f"/v1/jobs?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_a_video_is_found_by_either_id_and_deleted_with_its_file(
    client: httpx.AsyncClient,
) -> None:
    clip = await video(client)
    found = await until(client, clip.replace("job_", "video_"), "completed")
    url = found["outputs"][0]["url"]
    assert (await client.get(url)).status_code == 200
    gone = await client.delete(f"/v1/jobs/{clip}")
    assert gone.json() == {"id": clip, "object": "job.deleted", "deleted": True}
    assert (await client.get(f"/v1/jobs/{clip}")).status_code == 404
    assert (await client.get(url)).status_code == 404


async def test_our_failures_are_told_without_details(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.failure = StageFailedError("secret detail", retryable=False)
    found = await until(client, await video(client), "failed")
    assert found["error"]["code"] == "stage_failed"
    assert "secret" not in found["error"]["message"]
    assert found["request_id"] in found["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("GET", "/schedule"),
        ("GET", "/events"),
        ("POST", "/cancel"),
        ("DELETE", ""),
    ],
)
async def test_another_tenants_job_is_as_if_there_were_none(
    serve: Serve, engine: FakeEngine, method: str, path: str
) -> None:
    engine.gate.clear()
    async with serve(keys=parse_keys("acme:sk-acme-1234,globex:sk-globex-1")) as client:
        client.headers["authorization"] = "Bearer sk-acme-1234"
        mine = await video(client)
        client.headers["authorization"] = "Bearer sk-globex-1"
        answer = await client.request(method, f"/v1/jobs/{mine}{path}")
        listed = (await client.get("/v1/jobs")).json()["data"]
        client.headers["authorization"] = "Bearer sk-acme-1234"
        untouched = await job(client, mine)
    assert (answer.status_code, listed) == (404, [])
    assert untouched["cancel_requested"] is False


async def test_a_jobs_changes_are_streamed_until_it_is_over(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.gate.clear()
    clip = await video(client)
    stream = asyncio.create_task(client.get(f"/v1/jobs/{clip}/events"))
    await until(client, clip, "in_progress")
    engine.share = 0.5
    async with asyncio.timeout(10):
        while (await job(client, clip))["progress"] != 50:
            await asyncio.sleep(0.05)
    await asyncio.sleep(1.2)
    engine.gate.set()
    answer = await stream
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [
        json.loads(line.removeprefix("data: "))
        for line in answer.text.splitlines()
        if line.startswith("data: ")
    ]
    assert {e["id"] for e in events} == {clip}
    assert [e["status"] for e in events][-1] == "completed"
    assert 50 in [e["progress"] for e in events]
    assert "event: job" in answer.text
