"""POST /v1/images/generations, from the body to the picture."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import httpx
import pytest

from engine import EngineBusyError, InvalidRequestError, RequestImpossibleError, StageFailedError
from tests.gateway.conftest import Serve
from tests.support.fake_engine import FakeEngine, png_size

PATH = "/v1/images/generations"


async def draw(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post(PATH, json={"prompt": "a red circle", **body})


def pictures(response: httpx.Response) -> list[bytes]:
    return [base64.b64decode(image["b64_json"]) for image in response.json()["data"]]


async def test_a_prompt_alone_gives_one_picture_of_the_default_size(
    client: httpx.AsyncClient,
) -> None:
    response = await draw(client)
    assert response.status_code == 200
    assert [png_size(picture) for picture in pictures(response)] == [(64, 48)]


async def test_the_answer_has_the_contracts_fields_with_resolved_values(
    client: httpx.AsyncClient,
) -> None:
    body = (await draw(client, n=2, seed=5, size="auto", quality="auto", background="auto")).json()
    assert isinstance(body.pop("created"), int)
    assert len(body.pop("data")) == 2
    assert body == {
        "background": "opaque",
        "output_format": "png",
        "quality": "medium",
        "size": "64x48",
        "seed": 5,
        "usage": {
            "input_tokens": 3,
            "output_tokens": 24,
            "total_tokens": 27,
            "input_tokens_details": {"text_tokens": 3, "image_tokens": 0},
            "output_tokens_details": {"image_tokens": 24, "text_tokens": 0},
        },
    }


async def test_the_same_seed_gives_the_same_first_picture_whatever_n(
    client: httpx.AsyncClient,
) -> None:
    one, three = await draw(client, seed=7), await draw(client, seed=7, n=3)
    assert pictures(one) == pictures(three)[:1]
    assert len(set(pictures(three))) == 3


async def test_without_a_seed_pictures_differ(client: httpx.AsyncClient) -> None:
    one, two = await draw(client), await draw(client)
    assert one.json()["seed"] != two.json()["seed"]
    assert pictures(one) != pictures(two)


async def test_the_engine_gets_what_the_body_asks_for(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await draw(
        client,
        model="shapes",
        size="128x64",
        output_format="webp",
        output_compression=40,
        num_inference_steps=3,
        guidance_scale=1,
        seed=9,
    )
    request = engine.requests[0]
    asked = (request.model, str(request.shape), request.media.value, request.compression)
    assert asked == ("shapes", "128x64", "webp", 40)
    assert (request.steps, request.guidance_scale, request.seed) == (3, 1.0, 9)


async def test_the_deadline_is_a_multiple_of_the_expected_latency(
    serve: Serve, engine: FakeEngine
) -> None:
    async with serve(slo_scale=3.0) as client:
        await draw(client, num_inference_steps=4)
    request = engine.requests[0]
    assert request.deadline_s - request.arrival_s == pytest.approx(12.0)


async def test_the_jobs_span_is_the_parent_of_the_engines_spans(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    await client.post(PATH, json={"prompt": "x"}, headers=headers)
    traceparent = engine.requests[0].traceparent
    assert traceparent is not None
    assert traceparent.split("-")[1] == trace_id


async def test_answers_tell_where_the_time_went(client: httpx.AsyncClient) -> None:
    response = await draw(client)
    names = [part.split(";")[0] for part in response.headers["server-timing"].split(", ")]
    assert names == ["queue", "encode", "diffuse", "decode", "total"]
    assert response.headers["openai-processing-ms"].isdecimal()


@pytest.mark.parametrize("field", ["user", "safety_identifier"])
async def test_an_end_users_id_is_accepted_and_reported(
    client: httpx.AsyncClient, field: str
) -> None:
    response = await draw(client, moderation="low", **{field: "u-1"})
    assert response.json()["safety_identifier"] == "u-1"


async def test_unknown_fields_are_ignored_and_nulls_mean_defaults(
    client: httpx.AsyncClient,
) -> None:
    response = await draw(client, n=None, size=None, style=None, stream=None, later_invention=1)
    assert response.status_code == 200


async def test_many_callers_at_once_all_get_their_own_picture(client: httpx.AsyncClient) -> None:
    responses = await asyncio.gather(*(draw(client, seed=seed) for seed in range(16)))
    assert [response.json()["seed"] for response in responses] == list(range(16))


BAD_BODIES = [
    ({"prompt": None}, "prompt", "missing_required_parameter"),
    ({"prompt": ""}, "prompt", "string_below_min_length"),
    ({"prompt": "x" * 32_001}, "prompt", "string_above_max_length"),
    ({"prompt": 3}, "prompt", "invalid_type"),
    ({"n": 0}, "n", "integer_below_min_value"),
    ({"n": 11}, "n", "integer_above_max_value"),
    ({"n": True}, "n", "invalid_type"),
    ({"n": "2"}, "n", "invalid_type"),
    ({"size": "huge"}, "size", "invalid_value"),
    ({"size": "65x64"}, "size", "invalid_value"),
    ({"size": "2048x64"}, "size", "invalid_value"),
    ({"quality": "best"}, "quality", "invalid_value"),
    ({"output_format": "gif"}, "output_format", "invalid_value"),
    ({"output_format": "jpeg", "output_compression": 101}, "output_compression", None),
    ({"output_compression": 50}, "output_compression", "invalid_value"),
    ({"background": "transparent"}, "background", "invalid_value"),
    ({"partial_images": 4}, "partial_images", "integer_above_max_value"),
    ({"stream": "yes"}, "stream", "invalid_type"),
    ({"stream": True, "response_format": "url"}, "response_format", "invalid_value"),
    ({"priority": 10}, "priority", "integer_above_max_value"),
    ({"deadline_ms": 0}, "deadline_ms", "integer_below_min_value"),
    ({"deadline_ms": 5, "slo_class": "relaxed"}, "deadline_ms", "invalid_value"),
    ({"slo_class": "asap"}, "slo_class", "invalid_value"),
    ({"response_format": "gif"}, "response_format", "invalid_value"),
    ({"style": "loud"}, "style", "invalid_value"),
    ({"svg": {}}, "svg", "unknown_parameter"),
    ({"frame_count": 9}, "frame_count", "unknown_parameter"),
    ({"seed": -1}, "seed", "integer_below_min_value"),
    ({"seed": "1"}, "seed", "invalid_type"),
    ({"num_inference_steps": 11}, "num_inference_steps", "integer_above_max_value"),
    ({"guidance_scale": 30.5}, "guidance_scale", "decimal_above_max_value"),
    ({"negative_prompt": "blur"}, "negative_prompt", "invalid_value"),
]


@pytest.mark.parametrize(("body", "param", "code"), BAD_BODIES)
async def test_a_wrong_parameter_is_named(
    client: httpx.AsyncClient, body: dict[str, Any], param: str, code: str | None
) -> None:
    response = await draw(client, **body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert error["code"] == (code or "integer_above_max_value")
    assert error["type"] == "invalid_request_error"


async def test_an_unknown_model_is_not_found(client: httpx.AsyncClient) -> None:
    response = await draw(client, model="dall-e-3")
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (
        404,
        "model_not_found",
        "model",
    )


@pytest.mark.parametrize(
    ("failure", "status", "code", "param"),
    [
        (InvalidRequestError("Too long.", param="prompt"), 400, "invalid_value", "prompt"),
        (RequestImpossibleError("Too big."), 400, "request_does_not_fit", None),
        (StageFailedError("secret path", retryable=False), 500, None, None),
        (RuntimeError("secret path"), 500, None, None),
    ],
)
async def test_an_engine_failure_becomes_the_right_error(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    *,
    failure: Exception,
    status: int,
    code: str | None,
    param: str | None,
) -> None:
    engine.failure = failure
    response = await draw(client)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert "secret" not in response.text


async def test_an_internal_error_names_the_request_id_and_asks_not_to_retry(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.failure = RuntimeError("boom")
    response = await draw(client)
    assert response.headers["x-request-id"] in response.json()["error"]["message"]
    assert response.headers["x-should-retry"] == "false"


async def test_a_busy_engine_only_delays(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.failure = EngineBusyError("full")
    answer = asyncio.create_task(draw(client))
    await engine.asked.wait()
    engine.failure = None
    assert (await answer).status_code == 200


async def test_a_full_queue_is_an_overload_that_says_when_to_return(
    serve: Serve, engine: FakeEngine
) -> None:
    engine.gate.clear()
    async with serve(queue_limit=1, max_concurrent=1) as client:
        running = asyncio.create_task(draw(client))
        await engine.asked.wait()
        waiting = asyncio.create_task(draw(client))
        refused = await _first_refusal(client)
        engine.gate.set()
        await asyncio.gather(running, waiting)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (503, "server_is_overloaded")
    assert error["type"] == "service_unavailable_error"
    assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("16", "16000")


async def _first_refusal(client: httpx.AsyncClient) -> httpx.Response:
    """Two callers for one place in the queue, if `waiting` has not taken it: one is refused."""
    calls = {asyncio.create_task(draw(client)) for _ in range(2)}
    done, pending = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    for call in pending:
        call.cancel()
    return done.pop().result()


async def test_a_job_that_takes_too_long_is_cancelled(serve: Serve, engine: FakeEngine) -> None:
    engine.gate.clear()
    async with serve(request_timeout_s=0.05) as client:
        response = await draw(client)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "request_timeout")


async def test_the_api_starts_while_the_engine_still_loads(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz")).json() == {"status": "ok"}
