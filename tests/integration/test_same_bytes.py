"""Same seed, same bytes: alone, in a batch, after a retry, over any replica."""

from __future__ import annotations

import base64
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.support.server import Server, running_server

SHAPES = [Path(__file__).parents[2] / "models" / "shapes"]
# No stage may be skipped because another request had the same prompt.
EVERY_STAGE = {"TRIDENT_EMBEDDING_CACHE": "0"}


def draw(server: Server, seed: int = 7, prompt: str = "a red circle", n: int = 1) -> list[bytes]:
    answer = httpx.post(
        f"{server.url}/v1/images/generations",
        json={"model": "shapes", "prompt": prompt, "seed": seed, "n": n},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(item["b64_json"]) for item in answer.json()["data"]]


def drawn_beside_others(server: Server) -> bytes:
    with ThreadPoolExecutor(6) as pool:
        mine = pool.submit(draw, server)
        others = [pool.submit(draw, server, 100 + i, "a blue star") for i in range(5)]
        [picture] = mine.result()
        assert picture not in [other.result()[0] for other in others]
    return picture


def drawn_by_workers_that_are_killed(server: Server) -> bytes:
    before = len(server.spans())
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(draw, server)
        server.wait_for_span("stage encode", since=before)
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGKILL)
        [picture] = future.result()
    attempts = [
        span["attributes"].get("tridentserve.attempt", 1) for span in server.spans()[before:]
    ]
    assert max(attempts) > 1, "nothing was retried"
    return picture


def test_same_seed_same_bytes_alone_in_a_batch_after_a_retry_and_over_any_replica(
    tmp_path: Path,
) -> None:
    shared = {
        **EVERY_STAGE,
        "TRIDENT_DATABASE": f"sqlite:///{tmp_path / 'shared.db'}",
        "TRIDENT_ARTIFACTS": str(tmp_path / "artifacts"),
    }
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    with running_server(one, SHAPES, env=shared) as first:
        first.wait_ready()
        [alone] = draw(first)
        assert draw(first, n=3)[0] == alone
        assert draw(first, seed=6, n=2)[1] == alone  # the second of two is drawn with seed + 1
        assert drawn_beside_others(first) == alone
        assert drawn_by_workers_that_are_killed(first) == alone
    with running_server(two, SHAPES, env=shared, flags=["--role", "engine"]) as engine:
        engine.wait_ready()
        third = tmp_path / "three"
        third.mkdir()
        with running_server(third, [], env=shared, flags=["--role", "gateway"]) as gateway:
            gateway.wait_ready()
            assert draw(gateway) == [alone]
