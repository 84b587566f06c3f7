"""/v1/videos, from the body to the finished job."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine import InvalidRequestError, Shape, StageFailedError
from gateway.auth.keys import parse_keys
from tests.gateway.conftest import Serve
from tests.gateway.test_runner import rows
from tests.support.fake_engine import (
    FakeEngine,
    mp4_shape,
    png,
    png_size,
    spec_of,
    video_spec_of,
)

PATH = "/v1/videos"
KEYS = "acme:sk-acme-12345,globex:sk-globex-12345"
KEYS_OF_VIDEO = {
    *("id", "object", "status", "progress", "created_at", "completed_at", "expires_at", "model"),
    *("prompt", "size", "seconds", "remixed_from_video_id", "error", "frames", "fps", "seed"),
    *("phase", "step", "steps", "eta_s", "degraded"),
}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(spec_of(), video_spec_of())


async def film(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post(PATH, json={"prompt": "a red circle", **body})


async def finished(client: httpx.AsyncClient, video: str, *, key: str = "") -> dict[str, Any]:
    """Ask until the video is over, as a client would."""
    headers = {"authorization": f"Bearer {key}"}
    async with asyncio.timeout(10):
        while True:
            body: dict[str, Any] = (await client.get(f"{PATH}/{video}", headers=headers)).json()
            if body["status"] in {"completed", "failed"}:
                return body
            await asyncio.sleep(0.01)


async def made(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    return await finished(client, (await film(client, **body)).json()["id"])


async def test_a_prompt_alone_begins_a_video_of_the_models_own_shape(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.gate.clear()
    response = await film(client, seed=7)
    body = response.json()
    assert response.status_code == 200
    assert set(body) == KEYS_OF_VIDEO
    assert body.pop("id").startswith("video_")
    assert isinstance(body.pop("created_at"), int)
    assert body == {
        "object": "video",
        "status": "queued",
        "progress": 0,
        "completed_at": None,
        "expires_at": None,
        "model": "motion",
        "prompt": "a red circle",
        "size": "64x48",
        "seconds": "2",
        "remixed_from_video_id": None,
        "error": None,
        "frames": 16,
        "fps": 8,
        "seed": 7,
        "phase": "queued",
        "step": 0,
        "steps": 8,
        "eta_s": 8.0,
        "degraded": None,
    }


async def test_a_completed_video_has_a_time_of_completion_and_all_progress(
    client: httpx.AsyncClient,
) -> None:
    body = await made(client)
    assert (body["status"], body["progress"], body["error"]) == ("completed", 100, None)
    assert body["completed_at"] >= body["created_at"]


async def test_the_engine_gets_what_the_body_asks_for(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await made(
        client,
        model="motion",
        size="128x64",
        seconds="1.5",
        fps=12,
        num_inference_steps=3,
        guidance_scale=1,
        negative_prompt="blur",
        seed=9,
    )
    request = engine.requests[0]
    assert (str(request.shape), request.fps, request.media.value) == ("128x64x18", 12, "mp4")
    assert (request.steps, request.guidance_scale, request.seed) == (3, 1.0, 9)
    assert (request.negative_prompt, request.n, request.model) == ("blur", 1, "motion")


async def test_a_form_says_the_same_as_json(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    fields = {"prompt": "x", "seconds": "1", "size": "64x64", "seed": "9", "guidance_scale": "2.5"}
    parts = {name: (None, text) for name, text in {**fields, "frame_rate": "1"}.items()}
    response = await client.post(PATH, files=parts)
    await finished(client, response.json()["id"])
    request = engine.requests[0]
    assert (str(request.shape), request.seed, request.guidance_scale) == ("64x64x8", 9, 2.5)


async def test_json_may_write_seconds_as_a_number(client: httpx.AsyncClient) -> None:
    assert (await film(client, seconds=3)).json()["seconds"] == "3"


BAD_BODIES = [
    ({"prompt": None}, "prompt", "missing_required_parameter"),
    ({"prompt": ""}, "prompt", "string_below_min_length"),
    ({"seconds": "soon"}, "seconds", "invalid_value"),
    ({"seconds": "0"}, "seconds", "invalid_value"),
    ({"seconds": -1}, "seconds", "invalid_value"),
    ({"seconds": "nan"}, "seconds", "invalid_value"),
    ({"seconds": True}, "seconds", "invalid_type"),
    ({"seconds": "4.1"}, "seconds", "invalid_value"),
    ({"seconds": "9" * 400}, "seconds", "invalid_value"),
    ({"size": "720p"}, "size", "invalid_value"),
    ({"size": "65x64"}, "size", "invalid_value"),
    ({"frames": 33}, "frames", "integer_above_max_value"),
    ({"frames": 0}, "frames", "integer_below_min_value"),
    ({"frames": 8, "seconds": "1"}, "frames", "invalid_value"),
    ({"fps": 121}, "fps", "integer_above_max_value"),
    ({"num_inference_steps": 11}, "num_inference_steps", "integer_above_max_value"),
    ({"seed": "1"}, "seed", "invalid_type"),
    ({"model": "shapes"}, "model", "invalid_value"),
    ({"input_reference": {"file_id": "f"}}, "input_reference", "invalid_value"),
    ({"input_reference": "f"}, "input_reference", "invalid_type"),
    ({"strength": 0}, "strength", "decimal_below_min_value"),
    ({"priority": -1}, "priority", "integer_below_min_value"),
]


@pytest.mark.parametrize(("body", "param", "code"), BAD_BODIES)
async def test_a_wrong_parameter_is_named(
    client: httpx.AsyncClient, body: dict[str, Any], param: str, code: str
) -> None:
    response = await film(client, **body)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)


async def test_too_many_seconds_are_told_the_most(client: httpx.AsyncClient) -> None:
    message = (await film(client, seconds="60", fps=10)).json()["error"]["message"]
    assert "at most 3.2 seconds (32 frames at 10 per second)" in message


@pytest.mark.parametrize(
    ("parts", "param", "code"),
    [
        ({"seed": (None, "x")}, "seed", "invalid_type"),
        ({"input_reference": ("a.png", b"no")}, "input_reference", "unsupported_file_mimetype"),
        ({"input_reference[image_url]": (None, "https://x")}, "input_reference", "invalid_value"),
        ({"size": ("a.txt", b"64x64")}, "size", "invalid_type"),
    ],
)
async def test_a_wrong_part_of_a_form_is_named(
    client: httpx.AsyncClient, parts: dict[str, Any], param: str, code: str
) -> None:
    response = await client.post(PATH, files={"prompt": (None, "x"), **parts})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)


async def test_a_part_that_comes_twice_is_refused(client: httpx.AsyncClient) -> None:
    parts = [("prompt", (None, "x")), ("prompt", (None, "y"))]
    error = (await client.post(PATH, files=parts)).json()["error"]
    assert (error["param"], error["code"]) == ("prompt", "invalid_type")


FORM = "multipart/form-data; boundary=b"


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"prompt=x", "application/x-www-form-urlencoded", 415, "unsupported_content_type"),
        (b"--b", "multipart/form-data", 400, None),
        (b"no boundary", FORM, 400, None),
        (b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx', FORM, 400, None),
        (
            b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\r\n--b--\r\n',
            *(FORM, 400, None),
        ),
        (b"", FORM, 400, "missing_required_parameter"),
        (b"x" * 59_000_000, FORM, 413, "request_too_large"),
        (b"[]", "application/json", 400, None),
    ],
)
async def test_an_unreadable_body_is_refused(
    client: httpx.AsyncClient, content: bytes, kind: str, status: int, code: str | None
) -> None:
    response = await client.post(PATH, content=content, headers={"content-type": kind})
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("origin", "status"),
    [("https://evil.example", 403), ("https://app.example", 200), ("http://localhost", 200)],
)
async def test_only_allowed_pages_may_send_forms(serve: Serve, origin: str, status: int) -> None:
    async with serve(cors_origins=("https://app.example",)) as client:
        parts = {"prompt": (None, "x")}
        response = await client.post(PATH, files=parts, headers={"origin": origin})
    assert response.status_code == status


async def test_pictures_are_refused_by_a_video_model_with_the_names_of_the_others(
    client: httpx.AsyncClient,
) -> None:
    body = {"prompt": "x", "model": "motion"}
    response = await client.post("/v1/images/generations", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "model")
    assert "Models that make images: 'shapes'." in error["message"]


async def test_without_a_video_model_videos_are_refused(serve: Serve, engine: FakeEngine) -> None:
    engine._specs = {spec.id: spec for spec in (spec_of(),)}
    async with serve() as client:
        error = (await film(client)).json()["error"]
    assert (error["param"], error["code"]) == ("model", "invalid_value")
    assert "No model" in error["message"]


async def test_models_tell_what_they_make(client: httpx.AsyncClient) -> None:
    model = (await client.get("/v1/models/motion")).json()
    assert (model["modality"], model["default_size"], model["max_frames"]) == ("video", "64x48", 32)


async def test_a_waiting_video_outlives_the_time_limit_of_pictures(
    serve: Serve, engine: FakeEngine, tmp_path: Path
) -> None:
    engine.gate.clear()
    async with serve(request_timeout_s=0.01, video_timeout_s=500.0) as client:
        await film(client)
    ((expires, request),) = rows(tmp_path, "expires_at_s, deadline_s")
    assert expires - request > 400


async def test_a_video_outlives_its_client_and_the_server(serve: Serve, engine: FakeEngine) -> None:
    engine.gate.clear()
    async with serve() as client:
        video = (await film(client)).json()["id"]
        await engine.asked.wait()
    engine.gate.set()
    async with serve() as client:
        assert (await finished(client, video))["status"] == "completed"


async def test_a_video_that_has_begun_is_never_shown_as_queued_again(
    serve: Serve, engine: FakeEngine, tmp_path: Path
) -> None:
    engine.gate.clear()
    async with serve() as client:
        video = (await film(client)).json()["id"]
        await engine.asked.wait()
    assert rows(tmp_path, "status") == [("queued",)]
    engine.start_failure = RuntimeError("no GPU")
    async with serve() as client:
        body = (await client.get(f"{PATH}/{video}")).json()
    assert body["status"] == "in_progress"


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (InvalidRequestError("Too long.", param="prompt"), "invalid_value", "Too long."),
        (StageFailedError("secret path", retryable=False), "stage_failed", "request id req_"),
        (RuntimeError("secret path"), "internal_error", "request id req_"),
    ],
)
async def test_a_failed_video_says_why_without_our_insides(
    client: httpx.AsyncClient, engine: FakeEngine, failure: Exception, code: str, message: str
) -> None:
    engine.failure = failure
    body = await made(client)
    assert (body["status"], body["error"]["code"], body["completed_at"]) == ("failed", code, None)
    assert message in body["error"]["message"]
    assert "secret" not in str(body)


async def test_an_answer_says_when_to_ask_again(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.gate.clear()
    video = (await film(client, num_inference_steps=5)).json()["id"]
    response = await client.get(f"{PATH}/{video}")
    assert response.headers["openai-poll-after-ms"] == "500"


async def test_a_full_queue_is_an_overload(serve: Serve, engine: FakeEngine) -> None:
    engine.gate.clear()
    async with serve(queue_limit=1, max_concurrent=1) as client:
        await film(client)
        await engine.asked.wait()
        statuses = [(await film(client)).status_code for _ in range(2)]
    assert statuses == [200, 503]


@pytest.mark.parametrize("video", ["video_", "video_zz", "job_1", "x", "video_" + "0" * 32])
@pytest.mark.parametrize(("method", "rest"), [("GET", ""), ("DELETE", ""), ("GET", "/content")])
async def test_an_unknown_video_is_missing(
    client: httpx.AsyncClient, method: str, video: str, rest: str
) -> None:
    response = await client.request(method, f"{PATH}/{video}{rest}")
    assert (response.status_code, response.json()["error"]["code"]) == (404, None)


async def test_a_picture_is_no_video(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await client.post("/v1/images/generations", json={"prompt": "x"})
    video = engine.requests[0].id.replace("job_", "video_")
    assert (await client.get(f"{PATH}/{video}")).status_code == 404
    assert (await client.get(PATH)).json()["data"] == []


async def test_a_video_tells_its_phase_its_steps_and_what_is_left(
    client: httpx.AsyncClient,
) -> None:
    begun = (await film(client, num_inference_steps=4)).json()
    assert (begun["phase"], begun["step"], begun["steps"], begun["eta_s"]) == ("queued", 0, 4, 4.0)
    done = await made(client)
    assert (done["phase"], done["step"], done["steps"], done["eta_s"]) == (None, 8, 8, None)


@pytest.mark.parametrize("way", ["remix", "edits"])
async def test_a_completed_video_is_made_again_as_another_prompt_says(
    client: httpx.AsyncClient, engine: FakeEngine, way: str
) -> None:
    before = await made(client, size="128x64", frames=5, fps=10, seed=3)
    if way == "remix":
        response = await client.post(f"{PATH}/{before['id']}/remix", json={"prompt": "blue"})
    else:
        body = {"prompt": "blue", "video": {"id": before["id"]}}
        response = await client.post(f"{PATH}/edits", json=body)
    video = response.json()
    assert (response.status_code, video["remixed_from_video_id"]) == (200, before["id"])
    assert (video["size"], video["frames"], video["fps"]) == ("128x64", 5, 10)
    await engine_ran(engine, 2)
    request, files = engine.requests[1], engine.files[1]
    assert (request.prompt, request.steps) == ("blue", 5)  # 0.7 of 8, rounded down
    assert request.source is not None
    assert mp4_shape(files[request.source.image]) == Shape(128, 64, 5)
    await client.delete(f"{PATH}/{before['id']}")
    again = (await client.get(f"{PATH}/{video['id']}")).json()
    assert again["remixed_from_video_id"] == before["id"]


async def engine_ran(engine: FakeEngine, count: int) -> None:
    async with asyncio.timeout(5):
        while len(engine.requests) < count:
            await asyncio.sleep(0.01)


async def test_what_is_not_completed_cannot_be_remixed(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.gate.clear()
    video = (await film(client)).json()
    response = await client.post(f"{PATH}/{video['id']}/remix", json={"prompt": "x"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "video_not_completed")


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("edits", {"prompt": "x"}, 400, "missing_required_parameter"),
        ("edits", {"prompt": "x", "video": {"id": "video_1"}}, 404, None),
        ("extensions", {"prompt": "x", "video": {"id": "video_1"}}, 404, None),
        ("video_1/remix", {"prompt": "x"}, 404, None),
        ("video_1/remix", {}, 400, "missing_required_parameter"),
    ],
)
async def test_a_wrong_wish_for_another_video_is_refused(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], status: int, code: str | None
) -> None:
    response = await client.post(f"{PATH}/{path}", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


async def test_what_no_model_can_do_is_refused_in_words(client: httpx.AsyncClient) -> None:
    video = await made(client)
    body = {"prompt": "x", "seconds": "4", "video": {"id": video["id"]}}
    longer = await client.post(f"{PATH}/extensions", json=body)
    form = {"name": (None, "Mo"), "video": ("v.mp4", b"mp4")}
    character = await client.post(f"{PATH}/characters", files=form)
    for response in (longer, character):
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "unsupported_operation")
    assert (await client.get(f"{PATH}/characters/c_1")).status_code == 404


async def test_a_reference_picture_decides_the_size_and_begins_the_video(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    picture = png(130, 70, b"\xff\0\0")
    form = {"prompt": (None, "x"), "input_reference": ("a.png", picture)}
    response = await client.post(PATH, files=form)
    assert (response.status_code, response.json()["size"]) == (200, "128x64")
    await engine_ran(engine, 1)
    source = engine.requests[0].source
    assert source is not None
    assert png_size(engine.files[0][source.image]) == (128, 64)


async def test_a_reference_of_another_size_than_the_video_is_refused(
    client: httpx.AsyncClient,
) -> None:
    form = {
        "prompt": (None, "x"),
        "size": (None, "64x64"),
        "input_reference": ("a.png", png(128, 64, b"abc")),
    }
    response = await client.post(PATH, files=form)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "input_reference")


async def test_the_list_is_newest_first_and_leads_on_by_its_cursor(
    client: httpx.AsyncClient,
) -> None:
    ids = [(await film(client)).json()["id"] for _ in range(5)]
    seen: list[str] = []
    page: dict[str, Any] = {"has_more": True, "last_id": None}
    while page["has_more"]:
        after = {"after": page["last_id"]} if page["last_id"] else {}
        page = (await client.get(PATH, params={"limit": 2, **after})).json()
        assert (page["first_id"], page["last_id"]) == (
            page["data"][0]["id"],
            page["data"][-1]["id"],
        )
        seen += [video["id"] for video in page["data"]]
    assert seen == ids[::-1]
    upwards = (await client.get(PATH, params={"order": "asc", "after": ids[2]})).json()
    assert [video["id"] for video in upwards["data"]] == ids[3:]


async def test_a_page_leads_on_although_what_it_showed_was_deleted(
    client: httpx.AsyncClient,
) -> None:
    ids = [(await film(client)).json()["id"] for _ in range(3)]
    await client.delete(f"{PATH}/{ids[2]}")
    page = (await client.get(PATH, params={"after": ids[2]})).json()
    assert [video["id"] for video in page["data"]] == [ids[1], ids[0]]


@pytest.mark.parametrize("query", ["", "limit=0"])
async def test_an_empty_page_has_no_ids_and_no_more(client: httpx.AsyncClient, query: str) -> None:
    if query:
        await film(client)
    page = (await client.get(f"{PATH}?{query}")).json()
    assert page == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ("limit=101", "limit", "integer_above_max_value"),
        ("limit=-1", "limit", "integer_below_min_value"),
        ("limit=many", "limit", "invalid_type"),
        ("limit=", "limit", "invalid_type"),
        ("order=newest", "order", "invalid_value"),
        ("after=video_1", "after", "invalid_value"),
    ],
)
async def test_a_wrong_query_is_named(
    client: httpx.AsyncClient, query: str, param: str, code: str
) -> None:
    response = await client.get(f"{PATH}?{query}")
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)


async def test_a_deleted_video_is_gone_with_its_bytes(
    client: httpx.AsyncClient, tmp_path: Path
) -> None:
    video = (await made(client))["id"]
    assert list((tmp_path / "artifacts").rglob("*.mp4"))
    response = await client.delete(f"{PATH}/{video}", headers={"content-type": "application/json"})
    assert response.json() == {"id": video, "object": "video.deleted", "deleted": True}
    assert response.status_code == 200
    assert (await client.get(f"{PATH}/{video}")).status_code == 404
    assert (await client.delete(f"{PATH}/{video}")).status_code == 404
    assert (await client.get(PATH)).json()["data"] == []
    assert list((tmp_path / "artifacts").iterdir()) == []
    ((request,),) = rows(tmp_path, "request")
    assert "a red circle" not in request


async def test_a_running_video_is_stopped_by_its_deletion(
    serve: Serve, engine: FakeEngine, tmp_path: Path
) -> None:
    engine.gate.clear()
    async with serve() as client:
        video = (await film(client)).json()["id"]
        await engine.asked.wait()
        assert (await client.delete(f"{PATH}/{video}")).status_code == 200
        assert (await client.get(f"{PATH}/{video}")).status_code == 404
    assert engine.cancelled == [engine.requests[0].id]
    assert rows(tmp_path, "status") == [("cancelled",)]


async def test_a_waiting_video_is_never_begun_after_its_deletion(
    serve: Serve, engine: FakeEngine, tmp_path: Path
) -> None:
    engine.gate.clear()
    async with serve(max_concurrent=1) as client:
        await film(client)
        await engine.asked.wait()
        waiting = (await film(client)).json()["id"]
        await client.delete(f"{PATH}/{waiting}")
        engine.gate.set()
    assert sorted(rows(tmp_path, "status")) in (
        [("cancelled",), ("completed",)],
        [("cancelled",), ("queued",)],
    )
    assert len(engine.requests) == 1


async def test_no_tenant_reaches_anothers_videos(serve: Serve, engine: FakeEngine) -> None:
    acme, globex = ({"authorization": f"Bearer sk-{name}-12345"} for name in ("acme", "globex"))
    async with serve(keys=parse_keys(KEYS)) as client:
        made = await client.post(PATH, json={"prompt": "x"}, headers=acme)
        video = made.json()["id"]
        await finished(client, video, key="sk-acme-12345")
        for method, rest in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
            response = await client.request(method, f"{PATH}/{video}{rest}", headers=globex)
            assert response.status_code == 404
        theirs = (await client.get(PATH, headers=globex)).json()
        beyond = (await client.get(f"{PATH}?order=asc&after={video}", headers=globex)).json()
        content = await client.get(f"{PATH}/{video}/content", headers=acme)
        without_key = await client.get(f"{PATH}/{video}/content")
    assert (theirs["data"], beyond["data"]) == ([], [])
    assert mp4_shape(content.content) == engine.requests[0].shape
    assert without_key.status_code == 401
