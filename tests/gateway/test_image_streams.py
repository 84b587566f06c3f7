"""`stream: true`: what goes over the wire, event by event."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine import StageFailedError
from gateway.api import sse
from tests.gateway.conftest import Serve
from tests.support.fake_engine import FakeEngine, png, png_size

GENERATIONS = "/v1/images/generations"


async def events_of(client: httpx.AsyncClient, path: str = GENERATIONS, **body: Any) -> list[Any]:
    response = await client.post(path, json={"prompt": "a red circle", "stream": True, **body})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-request-id"]
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""  # the last event is closed by an empty line
    return [parsed(block) for block in blocks if not block.startswith(":")]


def parsed(block: str) -> dict[str, Any]:
    name, data = block.split("\n")
    event = json.loads(data.removeprefix("data: "))
    assert name == f"event: {event.get('type', 'error')}"
    return dict(event)


async def test_partial_images_come_before_the_finished_one(client: httpx.AsyncClient) -> None:
    *partial, completed = await events_of(client, partial_images=3, seed=5, quality="high")
    assert [event["partial_image_index"] for event in partial] == [0, 1, 2]
    assert {event["type"] for event in partial} == {"image_generation.partial_image"}
    assert completed["type"] == "image_generation.completed"
    assert completed["seed"] == 5
    pictures = [base64.b64decode(event["b64_json"]) for event in (*partial, completed)]
    assert {png_size(picture) for picture in pictures} == {(64, 48)}
    assert len(set(pictures)) == 4
    for event in (*partial, completed):
        assert (event["size"], event["quality"], event["background"]) == ("64x48", "high", "opaque")
        assert isinstance(event["created_at"], int)
    assert set(completed["usage"]) == {
        "input_tokens",
        "output_tokens",
        "total_tokens",
        "input_tokens_details",
    }


async def test_watching_changes_no_byte(client: httpx.AsyncClient) -> None:
    plain = await client.post(GENERATIONS, json={"prompt": "a red circle", "seed": 5})
    [*_, completed] = await events_of(client, partial_images=2, seed=5)
    assert completed["b64_json"] == plain.json()["data"][0]["b64_json"]


async def test_without_partial_images_there_is_one_event(client: httpx.AsyncClient) -> None:
    assert [event["type"] for event in await events_of(client)] == ["image_generation.completed"]


async def test_each_of_several_images_has_its_own_events(client: httpx.AsyncClient) -> None:
    events = await events_of(client, n=2, partial_images=2, seed=9)
    partial = [(e["image_index"], e["partial_image_index"]) for e in events[:-2]]
    assert sorted(partial) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [(e["image_index"], e["seed"]) for e in events[-2:]] == [(0, 9), (1, 10)]


async def test_an_edit_streams_under_its_own_names(client: httpx.AsyncClient) -> None:
    form = {
        "prompt": (None, "x"),
        "stream": (None, "true"),
        "partial_images": (None, "1"),
        "image": ("a.png", png(64, 48, b"abc")),
    }
    response = await client.post("/v1/images/edits", files=form)
    names = [line for line in response.text.split("\n") if line.startswith("event:")]
    assert names == ["event: image_edit.partial_image", "event: image_edit.completed"]


async def test_a_bad_request_is_no_stream(client: httpx.AsyncClient) -> None:
    response = await client.post(GENERATIONS, json={"stream": True})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")


async def test_a_failure_inside_the_stream_is_an_event(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.failure = StageFailedError("secret path", retryable=False)
    [event] = await events_of(client)
    assert event["error"]["type"] == "server_error"
    assert "secret" not in event["error"]["message"]


async def test_nothing_is_left_of_what_was_shown(client: httpx.AsyncClient, tmp_path: Path) -> None:
    await events_of(client, partial_images=3)
    async with asyncio.timeout(5):
        while list((tmp_path / "artifacts").rglob("preview-*")):
            await asyncio.sleep(0.01)


async def test_a_comment_keeps_a_quiet_stream_alive(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_S", 0.01)
    engine.gate.clear()
    call = asyncio.create_task(client.post(GENERATIONS, json={"prompt": "x", "stream": True}))
    await engine.asked.wait()
    await asyncio.sleep(0.05)
    engine.gate.set()
    assert (await call).text.startswith(": keep-alive\n\n")


async def test_whoever_leaves_cancels_the_work(serve: Serve, engine: FakeEngine) -> None:
    engine.gate.clear()
    async with serve() as client:
        call = asyncio.create_task(
            client.post(GENERATIONS, json={"prompt": "x", "stream": True, "partial_images": 1})
        )
        await engine.asked.wait()
        call.cancel()
        async with asyncio.timeout(5):
            while not engine.cancelled:
                await asyncio.sleep(0.01)
