"""Keys in front of /v1."""

from __future__ import annotations

import httpx
import pytest

from gateway.auth.keys import parse_keys
from tests.gateway.conftest import Serve
from tests.support.fake_engine import FakeEngine

KEYS = parse_keys("acme:sk-acme-12345,globex:sk-globex-123")


async def _get(serve: Serve, authorization: str | None) -> httpx.Response:
    headers = {} if authorization is None else {"authorization": authorization}
    async with serve(keys=KEYS) as client:
        return await client.get("/v1/models", headers=headers)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_a_known_key_is_let_in(serve: Serve, scheme: str) -> None:
    assert (await _get(serve, f"{scheme} sk-acme-12345")).status_code == 200


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Basic sk-acme-12345"])
async def test_no_key_is_401_and_says_how_to_send_one(
    serve: Serve, authorization: str | None
) -> None:
    response = await _get(serve, authorization)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert "Bearer" in response.json()["error"]["message"]


async def test_a_wrong_key_is_401_and_masked(serve: Serve) -> None:
    response = await _get(serve, "Bearer sk-someone-elses-key-9876")
    assert response.status_code == 401
    assert "9876" in response.json()["error"]["message"]
    assert "someone" not in response.text


async def test_the_key_is_checked_before_the_body(serve: Serve) -> None:
    async with serve(keys=KEYS) as client:
        response = await client.post("/v1/images/generations", content=b"{")
    assert response.status_code == 401


async def test_health_needs_no_key(serve: Serve) -> None:
    async with serve(keys=KEYS) as client:
        assert (await client.get("/healthz")).status_code == 200


async def test_the_tenant_comes_from_the_key(serve: Serve, engine: FakeEngine) -> None:
    async with serve(keys=KEYS) as client:
        await client.post(
            "/v1/images/generations",
            json={"prompt": "x", "tenant": "acme", "user": "acme"},
            headers={"authorization": "Bearer sk-globex-123"},
        )
    assert engine.requests[0].tenant == "globex"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("draw.localhost", 200),
        ("draw.example:443", 200),  # as the operator calls it
        ("evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
@pytest.mark.parametrize("path", ["/v1/jobs", "/console/stream"])
async def test_without_keys_a_page_that_points_its_name_at_us_is_refused(
    serve: Serve, path: str, host: str, status: int
) -> None:
    async with serve(public_base_url="https://draw.example") as client:
        response = await client.get(path, headers={"host": host})
    expected = 404 if status == 200 and path == "/console/stream" else status  # no engine here
    assert response.status_code == expected
    if status == 403:
        assert response.json()["error"]["code"] == "host_not_allowed"


async def test_with_keys_any_name_will_do(serve: Serve) -> None:
    headers = {"host": "evil.example", "authorization": "Bearer sk-acme-12345"}
    async with serve(keys=KEYS) as client:
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
