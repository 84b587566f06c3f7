"""kill -9 of the whole engine in mid-denoise: the next one goes on from what was saved last."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.integration.test_drain import STEPS, WITHIN_S, diffuse, finished, post_video
from tests.support.server import Server, running_server

EVERY = 4
ENV = {
    "TRIDENT_SAVE_EVERY_STEPS": str(EVERY),
    "TRIDENT_SAVE_EVERY_S": "0.001",
    "TRIDENT_LEASE_S": "2",  # after which a job whose holder is dead is taken up
}


def kept_steps(data_dir: Path) -> list[int]:
    """Return after how many steps the latents on disk were saved."""
    return [int(file.stem.rpartition(".")[2]) for file in (data_dir / "paused").glob("*.latent")]


def kill_once_kept(server: Server, step: int) -> int:
    """Kill all processes as soon as a latent of `step` or later is on disk; return its step."""
    until_s = time.monotonic() + WITHIN_S
    while max(kept_steps(server.data_dir), default=0) < step:
        assert time.monotonic() < until_s
        time.sleep(0.01)
    os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait()
    server.wait_gone()
    return max(kept_steps(server.data_dir))


def wait_none_kept(data_dir: Path) -> None:
    until_s = time.monotonic() + WITHIN_S
    while kept_steps(data_dir):
        assert time.monotonic() < until_s, "a latent outlived its diffuse"
        time.sleep(0.05)


def test_a_video_whose_engine_was_killed_goes_on_from_the_last_save_bit_for_bit(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folders = [model_folder("animatediff")]
    with running_server(tmp_path, folders, env=ENV) as first:
        first.wait_ready()
        undisturbed = finished(first, post_video(first))
        wait_none_kept(tmp_path)
        video = post_video(first)
        kept = kill_once_kept(first, 2 * EVERY)
    began = len(first.spans())
    with running_server(tmp_path, folders, env=ENV) as second:
        second.wait_ready()
        assert finished(second, video) == undisturbed
        [execution] = diffuse(second, began)
        assert kept <= execution["tridentserve.steps.from"] < STEPS
        wait_none_kept(tmp_path)
