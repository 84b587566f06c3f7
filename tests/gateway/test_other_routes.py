"""Models, files, health, and what every answer carries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest

from engine.cards import Limits
from gateway.auth.keys import parse_keys
from tests.gateway.conftest import Serve
from tests.support.fake_engine import FakeEngine, png_size, spec_of

MODEL = {
    "id": "shapes",
    "object": "model",
    "created": 1_700_000_000,
    "owned_by": "tridentserve",
    "modality": "image",
    "inputs": ["text", "image"],
    "default_size": "64x48",
    "size_multiple_px": 16,
    "max_side_px": 512,
    "max_pixels": 4_194_304,
    "default_frames": 1,
    "max_frames": 1,
    "default_fps": None,
    "default_steps": 8,
    "max_steps": 10,
    "uses_negative_prompt": False,
    "description": "",
}


async def test_models_are_listed(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models")).json() == {"object": "list", "data": [MODEL]}


async def test_a_model_is_found_by_its_name(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models/shapes")).json() == MODEL


@pytest.mark.parametrize(("model", "status"), [("shapes", 403), ("gpt-image-2", 404)])
async def test_no_model_can_be_removed(client: httpx.AsyncClient, model: str, status: int) -> None:
    assert (await client.delete(f"/v1/models/{model}")).status_code == status


async def test_a_models_name_may_hold_an_encoded_slash(serve: Serve, engine: FakeEngine) -> None:
    spec = spec_of("team/shapes xl")
    engine._specs = {spec.id: spec}
    async with serve() as client:
        response = await client.get("/v1/models/team%2Fshapes%20xl")
    assert response.json()["id"] == "team/shapes xl"


@pytest.mark.parametrize(
    ("size", "model"), [("auto", "small"), ("64x64", "small"), ("256x256", "large")]
)
async def test_without_a_name_the_first_model_that_draws_the_size_is_taken(
    serve: Serve, engine: FakeEngine, size: str, model: str
) -> None:
    small = msgspec.structs.replace(spec_of("small"), limits=Limits(max_pixels=64 * 64))
    specs = (small, spec_of("large"))
    engine._specs = {spec.id: spec for spec in specs}
    async with serve() as client:
        response = await client.post("/v1/images/generations", json={"prompt": "x", "size": size})
    assert response.status_code == 200
    assert [request.model for request in engine.requests] == [model]


async def test_an_empty_name_of_a_model_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/images/generations", json={"prompt": "x", "model": ""})
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("model", "missing_required_parameter")


async def _link(client: httpx.AsyncClient) -> str:
    body = {"prompt": "x", "response_format": "url"}
    response = await client.post("/v1/images/generations", json=body)
    return str(response.json()["data"][0]["url"])


async def test_a_link_gives_the_picture_without_a_key(serve: Serve) -> None:
    async with serve(keys=parse_keys("acme:sk-secret-1")) as client:
        client.headers["authorization"] = "Bearer sk-secret-1"
        url = await _link(client)
        del client.headers["authorization"]
        response = await client.get(url)
    assert url.startswith("http://localhost/v1/files/art_")
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
    assert png_size(response.content) == (64, 48)


async def test_a_link_starts_with_the_configured_base(serve: Serve) -> None:
    async with serve(public_base_url="https://pictures.example") as client:
        assert (await _link(client)).startswith("https://pictures.example/v1/files/")


async def test_a_known_picture_is_not_sent_twice(client: httpx.AsyncClient) -> None:
    url = await _link(client)
    etag = (await client.get(url)).headers["etag"]
    again = await client.get(url, headers={"if-none-match": etag})
    assert (again.status_code, again.content) == (304, b"")


async def test_a_changed_link_is_forbidden(client: httpx.AsyncClient) -> None:
    url = httpx.URL(await _link(client))
    later = url.copy_set_param("expires", str(int(url.params["expires"]) + 60))
    response = await client.get(later)
    assert (response.status_code, response.json()["error"]["code"]) == (403, "link_forged")


async def test_an_old_link_is_forbidden(serve: Serve) -> None:
    async with serve(url_ttl_s=0) as client:
        response = await client.get(await _link(client))
    assert (response.status_code, response.json()["error"]["code"]) == (403, "link_expired")


async def test_a_removed_picture_is_missing(client: httpx.AsyncClient, tmp_path: Path) -> None:
    url = await _link(client)
    for file in (tmp_path / "artifacts").rglob("*.png"):
        file.unlink()
    response = await client.get(url)
    assert (response.status_code, response.json()["error"]["code"]) == (404, None)


async def test_ready_means_that_a_request_would_succeed(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await _link(client)
    engine.noticed = ("Device cpu:1 is in quarantine.",)
    ready = await client.get("/readyz")
    told = {"ready": True, "reasons": [], "notices": ["Device cpu:1 is in quarantine."]}
    assert (ready.status_code, ready.json()) == (200, told)
    engine.obstacles = ("No device lives.",)
    unready = await client.get("/readyz")
    assert (unready.status_code, unready.json()["reasons"]) == (503, ["No device lives."])


async def test_probes_that_come_at_once_do_not_disturb_each_other(
    client: httpx.AsyncClient,
) -> None:
    await _link(client)
    probes = await asyncio.gather(*(client.get("/readyz") for _ in range(16)))
    assert {(probe.status_code, *probe.json()["reasons"]) for probe in probes} == {(200,)}


async def test_an_engine_that_cannot_start_is_a_reason_not_to_be_ready(
    serve: Serve, engine: FakeEngine
) -> None:
    engine.start_failure = RuntimeError("no GPU")
    async with serve() as client:
        await client.get("/healthz")
        response = await client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["reasons"] == ["The engine could not start: no GPU"]


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/v1/nothing", 404, "Invalid URL (GET /v1/nothing)"),
        ("GET", "/nothing", 404, "Invalid URL (GET /nothing)"),
        ("DELETE", "/v1/models", 405, "This method is not supported here; use "),
    ],
)
async def test_wrong_routes_answer_in_openais_envelope(
    client: httpx.AsyncClient, method: str, path: str, status: int, message: str
) -> None:
    response = await client.request(method, path)
    error = response.json()["error"]
    assert response.status_code == status
    assert error["message"].startswith(message)
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"].startswith("req_")
    assert response.headers["openai-processing-ms"] == "0"


async def test_a_wrong_method_is_told_the_right_ones(client: httpx.AsyncClient) -> None:
    response = await client.delete("/v1/models")
    assert "GET" in response.headers["allow"]


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, None),
        (b"", "application/json", 400, None),
        (b"[]", "application/json", 400, None),
        (b'{"prompt": "x"} and more', "application/json", 400, None),
        (b'{"n": NaN}', "application/json", 400, None),
        (b'{"prompt": "\xff"}', "application/json", 400, None),
        (b" " * 1_048_577, "application/json", 413, "request_too_large"),
        (b"prompt=x", "application/x-www-form-urlencoded", 415, "unsupported_content_type"),
        (b'{"prompt": "x"}', "text/plain", 415, "unsupported_content_type"),
    ],
)
async def test_a_body_that_is_no_json_object_is_refused(
    client: httpx.AsyncClient, content: bytes, kind: str, status: int, code: str | None
) -> None:
    headers = {"content-type": kind}
    response = await client.post("/v1/images/generations", content=content, headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, None)


async def test_the_rest_of_a_refused_body_is_read_so_that_the_client_sees_the_answer(
    client: httpx.AsyncClient,
) -> None:
    sent = []

    async def parts() -> AsyncIterator[bytes]:
        for number in range(4):
            sent.append(number)
            yield b" " * 600_000

    response = await client.post(
        "/v1/images/generations", content=parts(), headers={"content-type": "application/json"}
    )
    assert (response.status_code, sent) == (413, [0, 1, 2, 3])


async def test_every_answer_has_an_id_of_its_own(client: httpx.AsyncClient) -> None:
    sent = {"x-request-id": "mine"}
    ids = [(await client.get("/v1/models", headers=sent)).headers["x-request-id"] for _ in "ab"]
    assert len(set(ids)) == 2
    assert "mine" not in ids


async def test_pages_of_other_origins_may_not_call_by_default(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/models", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in response.headers


async def test_pages_of_an_allowed_origin_may_send_a_key(serve: Serve) -> None:
    async with serve(cors_origins=("https://app.example",)) as client:
        preflight = await client.options(
            "/v1/images/generations",
            headers={
                "origin": "https://app.example",
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization,content-type,x-stainless-os",
            },
        )
        error = await client.get("/v1/nothing", headers={"origin": "https://app.example"})
    assert preflight.status_code == 204
    assert error.headers["access-control-allow-origin"] == "https://app.example"
    assert "x-request-id" in error.headers["access-control-expose-headers"]


async def test_the_openapi_document_is_public_and_lists_the_routes(
    client: httpx.AsyncClient,
) -> None:
    document = (await client.get("/openapi.json")).json()
    assert "/v1/images/generations" in document["paths"]
    body = document["paths"]["/v1/images/generations"]["post"]["requestBody"]
    assert "prompt" in body["content"]["application/json"]["schema"]["properties"]


async def test_the_document_says_what_errors_and_files_are_like(client: httpx.AsyncClient) -> None:
    document = (await client.get("/schema")).json()
    retrieve = document["paths"]["/v1/videos/{video_id}"]["get"]["responses"]
    body = retrieve["4XX"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/ErrorBody"}
    assert set(retrieve) == {"200", "4XX", "5XX"}
    content = document["paths"]["/v1/videos/{video_id}/content"]["get"]["responses"]
    assert {"200", "206", "304"} < set(content)
    assert "video/mp4" in content["206"]["content"]


@pytest.mark.parametrize("path", ["/v1/jobs/x", "/v1/models/a/b", "/v1/videos"])
async def test_options_and_a_wrong_method_name_the_same_methods(
    client: httpx.AsyncClient, path: str
) -> None:
    asked = (await client.options(path)).headers["allow"]
    refused = (await client.put(path)).headers["allow"]
    assert set(asked.split(", ")) == set(refused.split(", "))


async def test_json_nested_without_end_is_refused_like_any_other_nonsense(
    client: httpx.AsyncClient,
) -> None:
    body = b'{"prompt": "a", "x":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    headers = {"Content-Type": "application/json"}
    response = await client.post("/v1/images/generations", content=body, headers=headers)
    assert response.status_code == 400
    assert "could not parse" in response.json()["error"]["message"]


@pytest.mark.parametrize("host", ["evil.com:99999999", "evil@x", "[::1", "a b", ""])
async def test_no_link_is_made_for_a_host_that_is_none(serve: Serve, host: str) -> None:
    async with serve(keys=parse_keys("acme:sk-acme-12345")) as client:
        response = await client.post(
            "/v1/images/generations",
            json={"prompt": "x", "response_format": "url"},
            headers={"Host": host, "Authorization": "Bearer sk-acme-12345"},
        )
    assert response.status_code == 400
    assert "host header" in response.json()["error"]["message"].lower()


async def test_signatures_of_links_are_not_in_the_trace(serve: Serve, tmp_path: Path) -> None:
    traces = tmp_path / "traces.jsonl"
    async with serve(trace_file=traces) as client:
        link = await _link(client)
        assert (await client.get(link)).status_code == 200
        assert (await client.get(link.replace("content", "contents"))).status_code == 404
    written = traces.read_text()
    assert "/v1/files/" in written
    assert link.rpartition("signature=")[2] not in written
    assert traces.stat().st_mode & 0o077 == 0
