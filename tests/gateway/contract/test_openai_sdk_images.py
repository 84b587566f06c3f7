"""The real OpenAI SDK's pictures against the app: streams, edits and variations, typed."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import httpx2
import openai
import pytest
from PIL import Image

from gateway.app import create_app
from gateway.settings import Settings
from tests.gateway.conftest import living
from tests.support.fake_engine import FakeEngine, png, png_size

RED = png(64, 48, b"\xff\0\0")


@pytest.fixture
async def sdk(engine: FakeEngine, tmp_path: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    app = create_app(Settings(models=(), data_dir=tmp_path), engine=engine)
    async with living(app):
        transport = httpx2.ASGITransport(cast("Any", app))  # litestar's scope types are narrower
        http = httpx2.AsyncClient(transport=transport)
        async with openai.AsyncOpenAI(
            api_key="none", base_url="http://localhost/v1", http_client=http, max_retries=0
        ) as client:
            yield client


def hole() -> bytes:
    image = Image.new("RGBA", (64, 48), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 32, 48))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


async def test_a_stream_is_read_as_typed_events(sdk: openai.AsyncOpenAI) -> None:
    stream = await sdk.images.generate(model="shapes", prompt="x", stream=True, partial_images=2)
    events = [event async for event in stream]
    assert [type(event).__name__ for event in events] == [
        "ImageGenPartialImageEvent",
        "ImageGenPartialImageEvent",
        "ImageGenCompletedEvent",
    ]
    assert png_size(base64.b64decode(events[-1].b64_json)) == (64, 48)


@pytest.mark.parametrize("image", [RED, [RED], ("a.png", RED, "image/png")], ids=type)
async def test_a_picture_is_edited_however_it_is_given(sdk: openai.AsyncOpenAI, image: Any) -> None:
    answer = await sdk.images.edit(model="shapes", image=image, prompt="x", mask=hole(), n=2)
    assert answer.data is not None
    assert len(answer.data) == 2
    assert answer.size == "64x48"


async def test_an_edit_streams(sdk: openai.AsyncOpenAI) -> None:
    stream = await sdk.images.edit(
        model="shapes", image=RED, prompt="x", stream=True, partial_images=1
    )
    names = [event.type async for event in stream]
    assert names == ["image_edit.partial_image", "image_edit.completed"]


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
async def test_a_variation_is_made(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.images.create_variation(model="shapes", image=RED, response_format="url")
    assert answer.data is not None
    assert (answer.data[0].url or "").startswith("http://localhost/v1/files/")


async def test_a_failure_in_a_stream_is_raised(sdk: openai.AsyncOpenAI, engine: FakeEngine) -> None:
    engine.failure = RuntimeError("boom")
    with pytest.raises(openai.APIError, match="server had an error"):
        async for _ in await sdk.images.generate(model="shapes", prompt="x", stream=True):
            pass


async def test_a_damaged_picture_is_a_bad_request_error(sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.images.edit(model="shapes", image=b"not a picture", prompt="x")
    assert (caught.value.param, caught.value.code) == ("image", "unsupported_file_mimetype")
