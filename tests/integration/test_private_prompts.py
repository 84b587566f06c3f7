"""What a prompt says is in no log, span, metric or event file of a real run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.support.server import running_server

MARKER = "xylophonic-zebra-4711"
TRACE = "0af7651916cd43dd8448eb211c80319c"
FILES = ("log.jsonl", "traces.jsonl", "events.jsonl", "metrics.txt", "console.txt")


@pytest.fixture(scope="module")
def left_behind(
    model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with all that a server told of a picture, of a refused wish, and of a failed one."""
    folder = tmp_path_factory.mktemp("private")
    env = {"TRIDENT_LOG_FORMAT": "json"}
    flags = ["--events", str(folder / "events.jsonl"), "--devices", "1"]
    with (
        (folder / "log.jsonl").open("wb") as log,
        running_server(folder, [model_folder("sd")], env=env, flags=flags, log=log) as server,
    ):
        server.wait_ready()
        headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
        with httpx.Client(base_url=server.url, headers=headers, timeout=120) as client:
            wish = {"model": "sd", "prompt": MARKER, "negative_prompt": MARKER}
            drawn = client.post("/v1/images/generations", json={**wish, "n": 2})
            assert drawn.status_code == 200
            assert client.post("/v1/images/generations", json=wish | {"size": MARKER}).is_error
            (folder / "metrics.txt").write_text(client.get("/metrics").text)
            with client.stream("GET", "/console/stream") as stream:
                lines = iter(stream.iter_lines())
                told = [next(lines) for _ in range(40)]
            (folder / "console.txt").write_text("\n".join(told))
    return folder


@pytest.mark.parametrize("name", FILES)
def test_a_prompt_is_nowhere(left_behind: Path, name: str) -> None:
    text = (left_behind / name).read_text()
    assert len(text) > 100
    assert MARKER not in text


def test_log_lines_are_json_and_those_of_a_job_name_its_request_and_trace(
    left_behind: Path,
) -> None:
    lines = (left_behind / "log.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    answered = [line for line in found if line.get("trace_id") == TRACE]
    assert answered
    assert all(line.get("request_id") or line.get("job_id") for line in answered)
