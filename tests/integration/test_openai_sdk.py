"""Every call of the official Python SDK, sync and async, on a live server with the models that ship."""

from __future__ import annotations

import asyncio
import base64
import inspect
import io
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from PIL import Image

from tests.support.server import Server, running_server

# The SDK marks variations and all of its video methods deprecated, as OpenAI switched them off.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Sdk:
    """The sync or the async client, called in one way."""

    def __init__(self, client: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.client = client
        self._loop = loop

    def do(self, outcome: Any) -> Any:
        """Return what a method returns; an async one's once it is there."""
        return self._loop.run_until_complete(outcome) if inspect.isawaitable(outcome) else outcome

    def all(self, many: Any) -> list[Any]:
        """Return everything that a list, page by page, or a stream yields."""
        if not hasattr(many, "__aiter__"):
            return list(many)

        async def read() -> list[Any]:
            return [item async for item in many]

        return self._loop.run_until_complete(read())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("sdk"), models=[]) as running:
        running.wait_ready()
        yield running


@pytest.fixture(params=[openai.OpenAI, openai.AsyncOpenAI], ids=["sync", "async"])
def sdk(server: Server, request: pytest.FixtureRequest) -> Iterator[Sdk]:
    client = request.param(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    with asyncio.Runner() as runner:
        driver = Sdk(client, runner.get_loop())
        yield driver
        driver.do(client.close())


def picture(item: Any) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(item.b64_json)))


def png(image: Image.Image) -> tuple[str, bytes, str]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "picture.png", buffer.getvalue(), "image/png"


def named(video: Any) -> dict[str, Any]:
    """Return how a video is named: the SDK refuses a dictionary here before it sends anything."""
    return {"video": openai.omit, "extra_body": {"video": {"id": video.id}}}


def test_models(sdk: Sdk) -> None:
    models = sdk.client.models
    assert {"shapes", "motion"} <= {model.id for model in sdk.all(models.list())}
    assert sdk.do(models.retrieve("shapes")).owned_by == "tridentserve"
    with pytest.raises(openai.NotFoundError):
        sdk.do(models.retrieve("a/b c"))
    with pytest.raises(openai.PermissionDeniedError):
        sdk.do(models.delete("shapes"))


def test_images_generate(sdk: Sdk) -> None:
    wanted = {"model": "shapes", "prompt": "a red circle", "extra_body": {"seed": 5}}
    answer = sdk.do(sdk.client.images.generate(**wanted, n=2, output_format="webp"))
    assert [picture(item).format for item in answer.data] == ["WEBP", "WEBP"]
    assert answer.usage.total_tokens > 0
    linked = sdk.do(sdk.client.images.generate(**wanted, response_format="url"))
    assert linked.data[0].url.startswith("http://")
    events = sdk.all(sdk.do(sdk.client.images.generate(**wanted, stream=True, partial_images=2)))
    assert events[-1].type == "image_generation.completed"
    raw = sdk.do(sdk.client.images.with_raw_response.generate(**wanted))
    assert raw.headers["x-request-id"]
    assert events[-1].b64_json == sdk.do(raw.parse()).data[0].b64_json


def test_images_edit_and_variation(sdk: Sdk) -> None:
    images, source = sdk.client.images, png(Image.new("RGB", (64, 64), "red"))
    hole = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    hole.paste((0, 0, 0, 0), (0, 0, 32, 64))
    wanted = {"model": "shapes", "image": source, "prompt": "a blue star"}
    answer = sdk.do(images.edit(**wanted, mask=png(hole), input_fidelity="high"))
    assert picture(answer.data[0]).size == (64, 64)
    events = sdk.all(sdk.do(images.edit(**wanted, stream=True, partial_images=1)))
    assert events[-1].type == "image_edit.completed"
    varied = sdk.do(images.create_variation(model="shapes", image=source, n=2))
    assert len(varied.data) == 2


def test_videos(sdk: Sdk) -> None:
    videos, ours = sdk.client.videos, {"num_inference_steps": 4, "frames": 4}
    made = sdk.do(
        videos.create_and_poll(
            model="motion",
            prompt="a red circle moves right",
            input_reference=png(Image.new("RGB", (64, 64), "white")),
            size="64x64",  # type: ignore[arg-type]
            extra_body=ours,
        )
    )
    assert (made.status, made.progress, made.size) == ("completed", 100, "64x64")
    assert sdk.do(videos.retrieve(made.id)).id == made.id
    assert made.id in [video.id for video in sdk.all(videos.list(limit=1))]
    for variant, magic in (
        ("video", b"ftyp"),
        ("thumbnail", b"RIFF"),
        ("spritesheet", b"\xff\xd8"),
    ):
        content = sdk.do(videos.download_content(made.id, variant=variant)).content
        assert magic in content[:12]
    with_head = sdk.do(
        videos.with_raw_response.retrieve(made.id, extra_headers={"x-client-request-id": "mine"})
    )
    assert with_head.headers["openai-poll-after-ms"]
    remixed = sdk.do(videos.remix(made.id, prompt="a blue star"))
    edited = sdk.do(videos.edit(prompt="a green square", **named(made)))
    for other in (remixed, edited):
        assert sdk.do(videos.poll(other.id, poll_interval_ms=50)).status == "completed"
        assert sdk.do(videos.delete(other.id)).deleted
    begun = sdk.do(videos.create(model="motion", prompt="a red circle", extra_body=ours))
    assert sdk.do(videos.delete(begun.id)).id == begun.id
    assert sdk.do(videos.delete(made.id)).deleted
    with pytest.raises(openai.NotFoundError):
        sdk.do(videos.retrieve(made.id))


def test_what_no_model_can_do_is_refused_in_the_words_of_the_sdk(sdk: Sdk) -> None:
    videos = sdk.client.videos
    made = sdk.do(
        videos.create_and_poll(
            model="motion", prompt="x", extra_body={"num_inference_steps": 2, "frames": 2}
        )
    )
    with pytest.raises(openai.BadRequestError, match="make a video longer"):
        sdk.do(videos.extend(prompt="x", seconds="4", **named(made)))
    with pytest.raises(openai.BadRequestError, match="remember a character"):
        sdk.do(videos.create_character(name="x", video=("a.mp4", b"x", "video/mp4")))
    with pytest.raises(openai.NotFoundError):
        sdk.do(videos.get_character("char_1"))
