"""Who is let in: a bounded queue, hard deadlines against what is predicted, and what is told."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.gateway.conftest import Serve
from tests.support.fake_engine import FakeEngine

URL = "/v1/images/generations"
BODY = {"prompt": "x"}  # eight steps: eight seconds by the fake engine's word


async def occupied(client: httpx.AsyncClient, engine: FakeEngine, count: int) -> list[asyncio.Task]:  # type: ignore[type-arg]
    """Have `count` requests in the server, the first of them in the engine."""
    engine.gate.clear()
    calls = [asyncio.create_task(client.post(URL, json=BODY))]
    await engine.asked.wait()
    calls += [asyncio.create_task(client.post(URL, json=BODY)) for _ in range(count - 1)]
    async with asyncio.timeout(10):
        while len((await client.get("/v1/jobs")).json()["data"]) < count:
            await asyncio.sleep(0.05)
    return calls


async def test_a_full_queue_says_when_to_come_back_and_how_long_it_is(
    serve: Serve, engine: FakeEngine
) -> None:
    async with serve(queue_limit=2, max_concurrent=1) as client:
        calls = await occupied(client, engine, 3)
        refused = await client.post(URL, json=BODY)
        engine.gate.set()
        answers = await asyncio.gather(*calls)
    assert [answer.status_code for answer in answers] == [200] * 3
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (503, "server_is_overloaded")
    assert "2 requests are waiting" in error["message"]
    assert refused.headers["x-predicted-finish-ms"] == "24000"
    assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("12", "12000")
    assert "x-should-retry" not in refused.headers


async def test_a_deadline_that_the_queue_makes_impossible_is_refused_with_the_prediction(
    serve: Serve, engine: FakeEngine
) -> None:
    async with serve(max_concurrent=1) as client:
        calls = await occupied(client, engine, 2)
        refused = await client.post(URL, json={**BODY, "deadline_ms": 20_000})
        engine.gate.set()
        allowed = await client.post(URL, json={**BODY, "deadline_ms": 60_000})
        await asyncio.gather(*calls)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (503, "deadline_unmeetable")
    assert "24.0 seconds" in error["message"]
    assert refused.headers["x-predicted-finish-ms"] == "24000"
    assert refused.headers["retry-after"] == "4"
    assert allowed.status_code == 200


async def test_a_deadline_that_not_even_an_idle_server_meets_is_not_to_be_sent_again(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    refused = await client.post(URL, json={**BODY, "deadline_ms": 5000})
    assert (refused.status_code, refused.headers["x-should-retry"]) == (503, "false")
    assert engine.requests == []


async def test_a_guess_refuses_nobody(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.is_sure = False
    answer = await client.post(URL, json={**BODY, "deadline_ms": 5000})
    assert answer.status_code == 200


async def test_a_caller_with_a_deadline_does_not_wait_longer(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.is_sure = False
    engine.gate.clear()
    answer = await client.post(URL, json={**BODY, "deadline_ms": 300})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "request_timeout")
    async with asyncio.timeout(10):
        while not engine.cancelled:
            await asyncio.sleep(0)
    assert engine.cancelled == [engine.requests[0].id]


@pytest.mark.parametrize("value", [0, -1, 1.5, "soon", 10**12])
async def test_a_deadline_that_is_none_is_refused(client: httpx.AsyncClient, value: object) -> None:
    answer = await client.post(URL, json={**BODY, "deadline_ms": value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "deadline_ms")
