"""The real OpenAI SDK's videos against the app.

OpenAI switched its own Videos API off in September 2026, so every method warns; the types and
helpers are still what clients of self-hosted servers use.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import httpx2
import openai
import pytest

from gateway.app import create_app
from gateway.auth.keys import parse_keys
from gateway.settings import Settings
from tests.gateway.conftest import living
from tests.support.fake_engine import FakeEngine, mp4_shape, png, spec_of, video_spec_of

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
KEY = "sk-acme-12345"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(spec_of(), video_spec_of())


@pytest.fixture
async def sdk(engine: FakeEngine, tmp_path: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    settings = Settings(models=(), data_dir=tmp_path, keys=parse_keys(f"acme:{KEY}"))
    app = create_app(settings, engine=engine)
    async with living(app):
        http = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(cast("Any", app))  # litestar's scope types are narrower
        )
        async with openai.AsyncOpenAI(
            api_key=KEY, base_url="http://localhost/v1", http_client=http, max_retries=0
        ) as client:
            yield client


async def made(sdk: openai.AsyncOpenAI, **fields: Any) -> Any:
    return await sdk.videos.create_and_poll(
        prompt="a red circle", **{"model": "motion", "poll_interval_ms": 10, **fields}
    )


async def test_create_and_poll_returns_a_completed_video(
    sdk: openai.AsyncOpenAI, engine: FakeEngine
) -> None:
    video = await made(sdk, seconds="2", size="128x64", extra_body={"seed": 3, "fps": 10})
    assert (video.status, video.progress, video.seconds) == ("completed", 100, "2")
    assert (video.size, video.model, video.prompt) == ("128x64", "motion", "a red circle")
    assert video.error is None
    assert (engine.requests[0].seed, str(engine.requests[0].shape)) == (3, "128x64x20")


async def test_the_helper_follows_our_header(sdk: openai.AsyncOpenAI) -> None:
    video = await sdk.videos.create_and_poll(
        prompt="x", model=cast("Any", "motion"), extra_body={"num_inference_steps": 1}
    )
    assert video.status == "completed"


async def test_a_created_video_is_retrieved_and_downloaded(sdk: openai.AsyncOpenAI) -> None:
    created = await sdk.videos.create(prompt="x", model=cast("Any", "motion"))
    assert created.status in {"queued", "in_progress"}
    await sdk.videos.poll(created.id, poll_interval_ms=10)
    assert (await sdk.videos.retrieve(created.id)).completed_at is not None
    content = await sdk.videos.download_content(created.id)
    assert str(mp4_shape(content.content)) == "64x48x16"


async def test_a_list_is_paged_through(sdk: openai.AsyncOpenAI) -> None:
    ids = [(await sdk.videos.create(prompt="x")).id for _ in range(5)]
    assert [video.id async for video in sdk.videos.list(limit=2)] == ids[::-1]
    assert [video.id async for video in sdk.videos.list(order="asc", after=ids[3])] == ids[4:]


async def test_a_deleted_video_is_not_found(sdk: openai.AsyncOpenAI) -> None:
    video = await made(sdk)
    deleted = await sdk.videos.delete(video.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (video.id, True, "video.deleted")
    with pytest.raises(openai.NotFoundError):
        await sdk.videos.retrieve(video.id)


async def test_a_failed_video_is_returned_with_its_error(
    sdk: openai.AsyncOpenAI, engine: FakeEngine
) -> None:
    engine.failure = RuntimeError("/secret/path")
    video = await made(sdk)
    assert (video.status, video.error.code) == ("failed", "internal_error")
    assert "secret" not in video.error.message


async def test_a_reference_picture_is_a_bad_request_error(sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.videos.create(prompt="x", input_reference=b"\x89PNG")
    assert caught.value.param == "input_reference"


async def test_what_is_not_completed_cannot_be_downloaded(
    sdk: openai.AsyncOpenAI, engine: FakeEngine
) -> None:
    engine.gate.clear()
    video = await sdk.videos.create(prompt="x")
    with pytest.raises(openai.BadRequestError):
        await sdk.videos.download_content(video.id)


async def test_a_video_is_remixed_and_edited(sdk: openai.AsyncOpenAI) -> None:
    video = await made(sdk)
    remixed = await sdk.videos.remix(video.id, prompt="y")
    assert (remixed.remixed_from_video_id, remixed.prompt) == (video.id, "y")
    edited = await sdk.videos.edit(prompt="z", video=cast("Any", omit()), extra_body=named(video))
    assert edited.remixed_from_video_id == video.id


def omit() -> Any:
    """The SDK refuses a dictionary here before it sends anything; callers use extra_body."""
    return openai.omit


def named(video: Any) -> dict[str, Any]:
    return {"video": {"id": video.id}}


async def test_other_views_are_downloaded(sdk: openai.AsyncOpenAI) -> None:
    video = await made(sdk)
    thumbnail = await sdk.videos.download_content(video.id, variant="thumbnail")
    spritesheet = await sdk.videos.download_content(video.id, variant="spritesheet")
    assert thumbnail.content.startswith(b"RIFF")
    assert spritesheet.content.startswith(b"\xff\xd8")


async def test_a_reference_picture_begins_a_video(
    sdk: openai.AsyncOpenAI, engine: FakeEngine
) -> None:
    picture = png(64, 48, b"abc")
    video = await made(sdk, input_reference=("a.png", picture), size="64x48")
    assert video.status == "completed"
    assert engine.requests[0].source is not None


async def test_what_no_model_can_do_is_a_bad_request_error(sdk: openai.AsyncOpenAI) -> None:
    video = await made(sdk)
    with pytest.raises(openai.BadRequestError, match="longer"):
        await sdk.videos.extend(
            prompt="x", seconds="4", video=cast("Any", omit()), extra_body=named(video)
        )
    with pytest.raises(openai.BadRequestError, match="character"):
        await sdk.videos.create_character(name="Mo", video=b"mp4")
    with pytest.raises(openai.NotFoundError):
        await sdk.videos.get_character("char_1")
