"""The span of every request: named after its route, in its caller's trace, without secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gateway.jobs.store import JobStore
from tests.gateway.conftest import Serve

TRACE = "0af7651916cd43dd8448eb211c80319c"


def spans(file: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return [span for span in found if span["kind"] == "SpanKind.SERVER"]


async def test_a_request_is_a_span_of_its_route_in_the_trace_of_its_caller(
    serve: Serve, tmp_path: Path
) -> None:
    parent = f"00-{TRACE}-b7ad6b7169203331-01"
    async with serve(trace_file=tmp_path / "spans") as client:
        headers = {"traceparent": parent, "tracestate": "shop=1", "user-agent": "test/1"}
        answer = await client.get("/v1/models/shapes", headers=headers)
    (span,) = spans(tmp_path / "spans")
    assert span["name"] == "GET /v1/models/{model_id}"
    assert span["context"]["trace_id"] == f"0x{TRACE}"
    assert span["parent_id"] == "0xb7ad6b7169203331"
    assert "shop" in span["context"]["trace_state"]
    assert span["attributes"] == {
        "http.request.method": "GET",
        "http.route": "/v1/models/{model_id}",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "url.path": "/v1/models/shapes",
        "client.address": "127.0.0.1",
        "user_agent.original": "test/1",
        "tridentserve.request.id": answer.headers["x-request-id"],
    }


async def test_a_span_tells_no_signature_and_none_is_made_for_those_who_watch(
    serve: Serve, tmp_path: Path
) -> None:
    async with serve(trace_file=tmp_path / "spans") as client:
        for path in ("/healthz", "/readyz", "/metrics", "/v1/files/art_0/content?signature=secret"):
            await client.get(path)
    (span,) = spans(tmp_path / "spans")
    assert "secret" not in json.dumps(span)


async def test_requests_without_a_route_and_failures_have_spans_too(
    serve: Serve, tmp_path: Path, monkeypatch: Any
) -> None:
    async def fail(*_args: object) -> None:
        raise ZeroDivisionError

    async with serve(trace_file=tmp_path / "spans") as client:
        await client.get("/nowhere")
        await client.put("/v1/models")
        monkeypatch.setattr(JobStore, "page", fail)
        await client.get("/v1/videos")
    told = [
        (span["name"], span["attributes"]["http.response.status_code"], span["status"])
        for span in spans(tmp_path / "spans")
    ]
    fine, failed = {"status_code": "UNSET"}, {"status_code": "ERROR"}
    assert told == [("GET", 404, fine), ("PUT", 405, fine), ("GET /v1/videos", 500, failed)]
