"""The real OpenAI SDK against the app: answers it can read, errors of the right class."""

from __future__ import annotations

import base64
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
from tests.support.fake_engine import FakeEngine, png_size

KEY = "sk-acme-12345"


@pytest.fixture
async def transport(engine: FakeEngine, tmp_path: Path) -> AsyncIterator[httpx2.ASGITransport]:
    settings = Settings(models=(), data_dir=tmp_path, keys=parse_keys(f"acme:{KEY}"), queue_limit=1)
    app = create_app(settings, engine=engine)
    async with living(app):
        yield httpx2.ASGITransport(cast("Any", app))  # litestar's scope types are narrower


@pytest.fixture
async def sdk(transport: httpx2.ASGITransport) -> AsyncIterator[openai.AsyncOpenAI]:
    http = httpx2.AsyncClient(transport=transport)
    async with openai.AsyncOpenAI(
        api_key=KEY, base_url="http://localhost/v1", http_client=http, max_retries=0
    ) as client:
        yield client


async def test_images_generate_returns_a_picture(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.images.generate(
        model="shapes", prompt="a red circle", size="512x512", n=2, extra_body={"seed": 3}
    )
    assert answer.data is not None
    pictures = [base64.b64decode(image.b64_json or "") for image in answer.data]
    assert [png_size(picture) for picture in pictures] == [(512, 512)] * 2
    assert (answer.quality, answer.background, answer.output_format) == ("medium", "opaque", "png")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer._request_id is not None


async def test_models_are_listed_and_found(sdk: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in sdk.models.list()] == ["shapes"]
    assert (await sdk.models.retrieve("shapes")).owned_by == "tridentserve"


async def test_an_unknown_model_is_a_not_found_error(sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await sdk.images.generate(model="dall-e-3", prompt="x")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError) as caught:
        await sdk.models.retrieve("a/b c")
    assert caught.value.code == "model_not_found"
    assert "a/b c" in caught.value.message


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"size": "13x13"}, "size", "invalid_value"),
        ({"n": 11}, "n", "integer_above_max_value"),
        ({"partial_images": 4}, "partial_images", "integer_above_max_value"),
        ({"style": "loud"}, "style", "invalid_value"),
        ({"extra_body": {"complexity": "low"}}, "complexity", "unknown_parameter"),
        ({"extra_body": {"seed": "x"}}, "seed", "invalid_type"),
        ({"extra_body": {"prompt": None}}, "prompt", "missing_required_parameter"),
    ],
)
async def test_a_wrong_parameter_is_a_bad_request_error(
    sdk: openai.AsyncOpenAI, fields: dict[str, object], param: str, code: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.images.generate(model="shapes", prompt="x", **fields)  # type: ignore[call-overload]
    error = caught.value
    assert (error.param, error.code, error.type) == (param, code, "invalid_request_error")
    assert error.request_id is not None


async def test_a_wrong_key_is_an_authentication_error(sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        await sdk.with_options(api_key="sk-wrong-key-123").models.list()
    assert caught.value.code == "invalid_api_key"


async def test_an_unknown_route_is_a_not_found_error(sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await sdk.files.list()
    assert "Invalid URL (GET /v1/files)" in caught.value.message


async def test_a_failed_job_is_an_internal_server_error(
    sdk: openai.AsyncOpenAI, engine: FakeEngine
) -> None:
    engine.failure = RuntimeError("/secret/path")
    with pytest.raises(openai.InternalServerError) as caught:
        await sdk.images.generate(model="shapes", prompt="x")
    assert caught.value.type == "server_error"
    assert "/secret/path" not in str(caught.value)


async def test_the_sdk_does_not_repeat_what_failed_for_good(
    sdk: openai.AsyncOpenAI, engine: FakeEngine
) -> None:
    engine.failure = RuntimeError("boom")
    with pytest.raises(openai.InternalServerError):
        await sdk.with_options(max_retries=2).images.generate(model="shapes", prompt="x")
    assert len(engine.requests) == 1
