"""SIGTERM to the real command while it works: nothing is lost, nothing is done twice."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.support.server import Server, running_server

STEPS = 60
WITHIN_S = 300.0  # of machines that do other work, too


def post_video(server: Server, steps: int = STEPS) -> str:
    body = {"model": "animatediff", "prompt": "a star", "seed": 3, "num_inference_steps": steps}
    answer = httpx.post(f"{server.url}/v1/videos", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def finished(server: Server, video: str) -> bytes:
    until_s = time.monotonic() + WITHIN_S
    while (job := state(server, video))["status"] != "completed":
        assert job["status"] in {"queued", "in_progress"}, job
        assert time.monotonic() < until_s, job
        time.sleep(0.05)
    return httpx.get(f"{server.url}/v1/videos/{video}/content", timeout=60).content


def state(server: Server, video: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/v1/videos/{video}", timeout=60).json()
    return found


def wait_for_steps(server: Server, video: str) -> None:
    until_s = time.monotonic() + WITHIN_S
    while not 10 <= state(server, video)["progress"] < 90:
        assert time.monotonic() < until_s
        time.sleep(0.02)


def diffuse(server: Server, since: int = 0) -> list[dict[str, Any]]:
    spans = server.spans()[since:]
    return [span["attributes"] for span in spans if span["name"] == "stage diffuse"]


def test_a_video_that_is_stopped_half_way_goes_on_after_the_restart_bit_for_bit(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    env, folders = {"TRIDENT_DRAIN_S": "0.01"}, [model_folder("animatediff")]
    with running_server(tmp_path, folders, env=env) as first:
        first.wait_ready()
        undisturbed = finished(first, post_video(first))
        video = post_video(first)
        wait_for_steps(first, video)
        first.process.send_signal(signal.SIGTERM)
        assert first.process.wait(WITHIN_S) == 0
        first.wait_gone()
    began = len(first.spans())
    assert diffuse(first)[-1]["tridentserve.stage.paused"] is True
    assert len(list((tmp_path / "paused").iterdir())) == 1
    with running_server(tmp_path, folders, env=env) as second:
        second.wait_ready()
        assert finished(second, video) == undisturbed
    [execution] = diffuse(second, began)
    assert 0 < execution["tridentserve.steps.from"] < execution["tridentserve.steps.done"] == STEPS
    assert list((tmp_path / "paused").iterdir()) == []


def test_a_caller_whose_picture_ends_in_time_gets_it_from_a_server_that_stops(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    def post() -> int:
        body = {"model": "sd", "prompt": "x", "num_inference_steps": 40}
        return httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=300).status_code

    env = {"TRIDENT_DRAIN_S": "60"}
    with running_server(tmp_path, [model_folder("sd")], env=env) as server:
        server.wait_ready()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(post)
            server.wait_for_span("stage encode")
            server.process.send_signal(signal.SIGTERM)
            assert waiting.result(WITHIN_S) == 200
        assert server.process.wait(WITHIN_S) == 0
        server.wait_gone()
