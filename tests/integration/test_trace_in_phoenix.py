"""A collector that others make and people run: one request, exported to Arize Phoenix, is one tree.

Phoenix is a trace server of some size, so it is no dependency: `pip install arize-phoenix` into an
environment of its own, and PHOENIX=/path/to/bin/phoenix (or have it on the path) to run this.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from tests.support.server import free_port, running_server

PHOENIX = os.environ.get("PHOENIX") or shutil.which("phoenix")
TRACE = "0af7651916cd43dd8448eb211c80319c"
SHAPES = Path(__file__).parents[2] / "models" / "shapes"
PATIENCE_S = 120.0
EXPECTED = {
    "POST /v1/images/generations",
    "generate_content shapes",
    "stage encode",
    "stage diffuse",
    "stage decode",
}
pytestmark = pytest.mark.skipif(PHOENIX is None, reason="Arize Phoenix is not here")


def wait_for(client: httpx.Client, path: str) -> httpx.Response:
    """Return the first answer that is no error."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            answer = client.get(path)
        except httpx.TransportError:
            answer = httpx.Response(503)
        if answer.is_success:
            return answer
        time.sleep(0.5)
    raise TimeoutError(path)


@pytest.fixture(scope="module")
def phoenix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder, port = tmp_path_factory.mktemp("phoenix"), free_port()
    settings = {
        "PHOENIX_WORKING_DIR": str(folder),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(free_port()),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    log = (folder / "log.txt").open("wb")
    with subprocess.Popen(
        [str(PHOENIX), "serve"], env={**os.environ, **settings}, stdout=log, stderr=log
    ) as process:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_for(client, "/healthz")
            yield client
        process.terminate()
    log.close()


def spans_of(phoenix: httpx.Client) -> list[dict]:
    """Return the trace's spans when all that are expected have been taken in."""
    deadline = time.monotonic() + PATIENCE_S
    found: list[dict] = []
    while time.monotonic() < deadline:
        told = wait_for(phoenix, "/v1/projects/default/spans?limit=200").json()["data"]
        found = [span for span in told if span["context"]["trace_id"] == TRACE]
        if {span["name"] for span in found} >= EXPECTED:
            return found
        time.sleep(0.5)
    raise TimeoutError([span["name"] for span in found])


def took_s(span: dict) -> float:
    begin, end = (datetime.fromisoformat(span[at]) for at in ("start_time", "end_time"))
    return (end - begin).total_seconds()


def test_a_request_reads_as_one_tree_whose_stages_add_up(
    phoenix: httpx.Client, tmp_path: Path
) -> None:
    env = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{phoenix.base_url}/v1/traces"}
    with running_server(tmp_path, [SHAPES], env=env) as server:
        server.wait_ready()
        wish = {"prompt": "a red circle", "num_inference_steps": 150}
        headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
        drawn = httpx.post(
            f"{server.url}/v1/images/generations", json=wish, headers=headers, timeout=300
        )
        drawn.raise_for_status()
    spans = {span["name"]: span for span in spans_of(phoenix)}
    job = spans["generate_content shapes"]
    assert job["parent_id"] == spans["POST /v1/images/generations"]["context"]["span_id"]
    stages = [span for name, span in spans.items() if name.startswith("stage ")]
    assert {stage["parent_id"] for stage in stages} == {job["context"]["span_id"]}
    assert sum(map(took_s, stages)) == pytest.approx(took_s(job), rel=0.02)
