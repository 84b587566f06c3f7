"""The metrics page counts what was served, and names nothing that it should not."""

from __future__ import annotations

import asyncio
import re
import threading

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client.parser import text_string_to_metric_families

import gateway.app
from tests.gateway.conftest import Serve
from tests.support.fake_engine import FakeEngine


async def test_metrics_count_requests_by_route_and_jobs_by_deadline(
    client: httpx.AsyncClient,
) -> None:
    assert (await client.post("/v1/images/generations", json={"prompt": "x"})).status_code == 200
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    found = {
        (sample.name, sample.labels.get("route"), sample.labels.get("outcome")): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    served = ("http_server_request_duration_seconds_count", "/v1/images/generations", None)
    assert found[served] == 1
    assert found["tridentserve_slo_requests_total", None, "met"] == 1


async def test_metrics_count_jobs_that_wait_and_run(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.gate.clear()
    drawing = asyncio.create_task(client.post("/v1/images/generations", json={"prompt": "x"}))
    await engine.asked.wait()
    page = (await client.get("/metrics")).text
    engine.gate.set()
    assert (await drawing).status_code == 200
    assert 'tridentserve_jobs{state="in_progress"} 1.0' in page
    assert 'tridentserve_jobs{state="queued"} 0.0' in page
    assert 'tridentserve_jobs{state="in_progress"} 0.0' in (await client.get("/metrics")).text


async def test_metrics_name_no_job_and_no_prompt(client: httpx.AsyncClient) -> None:
    await client.post("/v1/images/generations", json={"prompt": "a secret wish"})
    page = (await client.get("/metrics")).text
    assert "secret" not in page
    assert not re.search(r"[0-9a-f]{32}", page)


async def counted(client: httpx.AsyncClient, name: str, **labels: str) -> float:
    page = (await client.get("/metrics")).text
    families = text_string_to_metric_families(page)
    found = [s for family in families for s in family.samples if s.name == name]
    return sum(s.value for s in found if labels.items() <= s.labels.items())


async def test_a_job_is_counted_by_what_is_predicted_of_its_deadline(
    client: httpx.AsyncClient,
) -> None:
    name = "tridentserve_slo_predictions_total"
    before = await counted(client, name)
    assert (await client.post("/v1/images/generations", json={"prompt": "x"})).status_code == 200
    assert await counted(client, name) == before + 1
    assert await counted(client, name, outcome="met") == before + 1


async def test_a_request_that_is_turned_away_is_counted_by_its_reason(
    client: httpx.AsyncClient,
) -> None:
    body = {"prompt": "x", "deadline_ms": 1}
    assert (await client.post("/v1/images/generations", json=body)).status_code == 503
    name = "tridentserve_requests_rejected_total"
    assert await counted(client, name, reason="deadline_unmeetable") == 1
    assert await counted(client, name) == 1


async def test_what_the_model_cannot_draw_is_counted_too(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/images/generations", json={"prompt": "x", "size": "63x63"})
    assert response.status_code == 400
    reason = response.json()["error"]["code"]
    assert await counted(client, "tridentserve_requests_rejected_total", reason=reason) == 1


async def test_a_collector_that_does_not_answer_does_not_hold_up_the_end(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()
    monkeypatch.setattr(gateway.app, "EXPORT_WITHIN_S", 0.05)
    monkeypatch.setattr(TracerProvider, "shutdown", lambda _: answered.wait(30))
    async with asyncio.timeout(15), serve() as client:
        assert (await client.get("/healthz")).status_code == 200
    assert not answered.is_set()
    answered.set()
