"""Requests that allow fewer denoise steps rather than being late: who gets how many, and who hears of it."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.gateway.conftest import Serve
from tests.gateway.test_admission import occupied
from tests.gateway.test_metrics_page import counted
from tests.support.fake_engine import FakeEngine, spec_of, video_spec_of

URL = "/v1/images/generations"
# Two jobs of eight seconds are before it. Ten of its own would be late, four or less would not.
BODY = {"prompt": "x", "num_inference_steps": 10, "min_inference_steps": 2, "deadline_ms": 20_500}
FEWER = {"wished_steps": 10, "used_steps": 4}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(spec_of(), video_spec_of())


async def behind_two(
    client: httpx.AsyncClient, engine: FakeEngine, asking: Awaitable[httpx.Response]
) -> httpx.Response:
    """Return the answer to a request that came while two others were in the server."""
    calls = await occupied(client, engine, 2)
    asked = asyncio.ensure_future(asking)
    async with asyncio.timeout(10):
        while not asked.done() and len((await client.get("/v1/jobs")).json()["data"]) < 3:
            await asyncio.sleep(0.02)
    engine.gate.set()
    await asyncio.gather(*calls)
    return await asked


def without(name: str, **changes: object) -> dict[str, Any]:
    return {key: value for key, value in (BODY | changes).items() if key != name}


async def test_a_request_that_would_be_late_gets_the_most_steps_that_are_on_time(
    serve: Serve, engine: FakeEngine
) -> None:
    async with serve(max_concurrent=1) as client:
        answer = await behind_two(client, engine, client.post(URL, json=BODY))
        job = (await client.get(f"/v1/jobs/{answer.headers['x-job-id']}")).json()
        schedule = (await client.get(f"/v1/jobs/{job['id']}/schedule")).json()
        assert await counted(client, "tridentserve_requests_degraded_total", model="shapes") == 1
    assert (answer.status_code, answer.json()["degraded"]) == (200, FEWER)
    assert (answer.headers["x-used-steps"], answer.headers["x-wished-steps"]) == ("4", "10")
    assert engine.requests[-1].steps == 4
    assert (job["steps"], job["degraded"], schedule["degraded"]) == (4, FEWER, FEWER)
    assert schedule["predicted_s"] == schedule["work_s"] == 4.0
    assert "4 of the 10 denoise steps" in schedule["why"]
    assert "5.5 s after its deadline" in schedule["why"]


async def test_without_leave_the_same_request_is_refused(serve: Serve, engine: FakeEngine) -> None:
    strict = without("min_inference_steps")
    async with serve(max_concurrent=1) as client:
        answer = await behind_two(client, engine, client.post(URL, json=strict))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "deadline_unmeetable")


async def test_a_request_that_is_on_time_as_it_is_keeps_its_steps(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    answer = await client.post(URL, json=BODY)
    assert engine.requests[-1].steps == 10
    assert "degraded" not in answer.json()
    assert not {"x-used-steps", "x-wished-steps"} & set(answer.headers)
    job = (await client.get(f"/v1/jobs/{answer.headers['x-job-id']}")).json()
    assert job["degraded"] is None


async def test_what_even_the_least_steps_cannot_save_is_refused_with_their_prediction(
    serve: Serve, engine: FakeEngine
) -> None:
    body = {**BODY, "min_inference_steps": 6}
    async with serve(max_concurrent=1) as client:
        answer = await behind_two(client, engine, client.post(URL, json=body))
    assert answer.status_code == 503
    assert "22.0 seconds, even with 6 denoise steps" in answer.json()["error"]["message"]
    assert answer.headers["x-predicted-finish-ms"] == "22000"


@pytest.mark.parametrize(("least", "degraded"), [(2, FEWER), (6, None)])
async def test_without_a_hard_deadline_the_usual_one_counts_and_nobody_is_cut_in_vain(
    serve: Serve, engine: FakeEngine, least: int, degraded: dict[str, int] | None
) -> None:
    body = without("deadline_ms", min_inference_steps=least)
    async with serve(max_concurrent=1, slo_scale=2.05) as client:  # due in 20.5 seconds
        answer = await behind_two(client, engine, client.post(URL, json=body))
    assert (answer.status_code, answer.json().get("degraded")) == (200, degraded)
    assert engine.requests[-1].steps == (4 if degraded else 10)


async def test_a_guess_degrades_nobody(serve: Serve, engine: FakeEngine) -> None:
    engine.is_sure = False
    async with serve(max_concurrent=1) as client:
        answer = await behind_two(client, engine, client.post(URL, json=BODY))
    assert "degraded" not in answer.json()


async def test_the_same_request_again_gets_the_same_steps_on_an_idle_server(
    serve: Serve, engine: FakeEngine
) -> None:
    key = {"idempotency-key": "k"}
    async with serve(max_concurrent=1) as client:
        first = await behind_two(client, engine, client.post(URL, json=BODY, headers=key))
        again = await client.post(URL, json=BODY, headers=key)
    assert again.json()["degraded"] == first.json()["degraded"] == FEWER
    assert again.json()["data"] == first.json()["data"]
    assert again.headers["x-used-steps"] == "4"


async def test_a_stream_says_it_in_its_head_and_with_the_finished_picture(
    serve: Serve, engine: FakeEngine
) -> None:
    async with serve(max_concurrent=1) as client:
        asking = client.post(URL, json={**BODY, "stream": True})
        answer = await behind_two(client, engine, asking)
    (line,) = (line for line in answer.text.splitlines() if line.startswith("data: "))
    assert json.loads(line.removeprefix("data: "))["degraded"] == FEWER
    assert answer.headers["x-wished-steps"] == "10"


async def test_an_edit_is_cut_in_its_whole_schedule(serve: Serve, engine: FakeEngine) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48)).save(buffer, "PNG")
    fields = {name: str(value) for name, value in BODY.items()} | {"strength": "0.5"}
    files = {"image": ("x.png", buffer.getvalue(), "image/png")}
    async with serve(max_concurrent=1) as client:
        asking = client.post("/v1/images/edits", data=fields, files=files)
        answer = await behind_two(client, engine, asking)  # half of ten steps is one too many
    request = engine.requests[-1]
    assert request.source is not None
    assert (request.steps, request.source.schedule_steps) == (4, 8)
    assert answer.json()["degraded"] == {"wished_steps": 10, "used_steps": 8}


async def test_a_video_says_it_and_its_remix_wishes_for_all_steps_again(
    serve: Serve, engine: FakeEngine
) -> None:
    async with serve(max_concurrent=1) as client:
        began = await behind_two(client, engine, client.post("/v1/videos", json=BODY))
        where = f"/v1/videos/{began.json()['id']}"
        async with asyncio.timeout(10):
            while (seen := await client.get(where)).json()["status"] != "completed":
                await asyncio.sleep(0.02)
        remixed = (await client.post(f"{where}/remix", json={"prompt": "y"})).json()
    assert (began.json()["degraded"], began.json()["steps"]) == (FEWER, 4)
    assert began.headers["x-used-steps"] == seen.headers["x-used-steps"] == "4"
    assert seen.json()["degraded"] == FEWER
    assert (remixed["degraded"], remixed["steps"]) == (None, 7)  # strength .7 of the ten


@pytest.mark.parametrize(
    ("least", "code"),
    [
        (11, "integer_above_max_value"),
        (0, "integer_below_min_value"),
        (1.5, "invalid_type"),
        ("few", "invalid_type"),
    ],
)
async def test_an_impossible_least_is_refused(
    client: httpx.AsyncClient, least: object, code: str
) -> None:
    answer = await client.post(URL, json={**BODY, "min_inference_steps": least})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (
        400,
        "min_inference_steps",
        code,
    )
