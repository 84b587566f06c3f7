"""`trident serve` without a model: what the pictures show, judged by the checker that trained them."""

from __future__ import annotations

import base64
import io
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest
from openai import OpenAI
from PIL import Image

from models.training.motion.scoring import held_out_clip_prompts, judge_all, shares_of
from models.training.scoring import Prompt, Share, held_out_prompts, score
from tests.support.server import Server, running_server

PROMPTS = held_out_prompts(seed=5, singles=12, pairs=4)
RETRIED = held_out_prompts(seed=6, singles=1, pairs=0)[0]
"""Asked for by no other test: a prompt that was encoded before is not encoded again."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server"), models=[]) as running:
        running.wait_ready()
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def draw(client: OpenAI, prompt: Prompt, n: int = 1, size: str = "auto") -> list[np.ndarray]:
    answer = client.images.generate(
        model="shapes", prompt=prompt.text, n=n, size=size, extra_body={"seed": 11}
    )
    images = [Image.open(io.BytesIO(base64.b64decode(item.b64_json))) for item in answer.data]
    return [np.asarray(image) for image in images]


def test_pictures_of_concurrent_requests_show_what_each_prompt_says(client: OpenAI) -> None:
    with ThreadPoolExecutor(8) as pool:
        pictures = [drawn[0] for drawn in pool.map(lambda p: draw(client, p), PROMPTS)]
    shares = score(PROMPTS, pictures)
    assert shares["background"].right >= 15, shares
    assert shares["colour"].right >= 14, shares
    assert shares["shape"].right >= 13, shares


def test_several_pictures_of_one_prompt_differ_and_all_show_it(client: OpenAI) -> None:
    pictures = draw(client, PROMPTS[0], n=4)
    assert len({picture.tobytes() for picture in pictures}) == 4
    assert score([PROMPTS[0]] * 4, pictures)["all"] == Share(4, 4)


def test_a_stage_that_is_retried_after_kill_9_still_draws_the_prompt(
    server: Server, client: OpenAI
) -> None:
    began = len(server.spans())
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(draw, client, RETRIED)
        server.wait_for_span("stage encode", since=began)
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGKILL)
        [picture] = future.result(60)
    [undisturbed] = draw(client, RETRIED)
    assert np.array_equal(picture, undisturbed)
    assert score([RETRIED], [picture])["all"] == Share(1, 1)


@pytest.mark.parametrize("size", ["96x64", "64x96"])
def test_other_aspect_ratios_show_the_prompt_too(client: OpenAI, size: str) -> None:
    pictures = [draw(client, prompt, size=size)[0] for prompt in PROMPTS[:4]]
    assert {f"{p.shape[1]}x{p.shape[0]}" for p in pictures} == {size}
    assert score(PROMPTS[:4], pictures)["colour"].right >= 3


@pytest.mark.filterwarnings("ignore:The Sora API is scheduled")
def test_videos_move_as_their_prompts_say(client: OpenAI) -> None:
    prompts = held_out_clip_prompts(seed=5, count=6)
    jobs = [
        client.videos.create(model="motion", prompt=prompt.text, extra_body={"seed": 11})
        for prompt in prompts
    ]
    shares = shares_of(judge_all(prompts, [film(client, job.id) for job in jobs]))
    assert shares["colour"].right >= 5, shares
    assert shares["direction"].right >= 5, shares


def film(client: OpenAI, video: str) -> list[np.ndarray]:
    """Wait for a video and return its frames."""
    assert client.videos.poll(video).status == "completed"
    with av.open(io.BytesIO(client.videos.download_content(video).read())) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
