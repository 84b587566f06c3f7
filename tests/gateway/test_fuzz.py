"""Malformed requests by the thousand: an error of ours for each, never a 5xx, nothing left behind.

A few hundred in the suite; `make test-fuzz` sends fifty thousand.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from typing import Any

import httpx
import pytest

from tests.gateway.conftest import Serve
from tests.support.fake_engine import FakeEngine, png, spec_of, video_spec_of

# Litestar lets go of the files of a form that it cannot read to its end without closing them; they
# are freed, but not in silence.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
PATHS = (
    *("/v1/images/generations", "/v1/images/edits", "/v1/images/variations", "/v1/videos"),
    *("/v1/videos/edits", "/v1/videos/extensions", "/v1/videos/characters", "/v1/videos/video_1"),
    *("/v1/videos/video_1/content", "/v1/videos/video_1/remix", "/v1/models", "/v1/models/x"),
    *("/v1/files/art_1/content", "/v1/jobs", "/v1/jobs/job_1", "/v1/nowhere"),
)
FIELDS = (
    *("prompt", "model", "n", "size", "quality", "output_format", "output_compression", "stream"),
    *("partial_images", "seed", "strength", "image", "images", "mask", "seconds", "frames", "fps"),
    *("input_reference", "video", "deadline_ms", "slo_class", "priority", "negative_prompt"),
    *("num_inference_steps", "guidance_scale", "background", "user", "response_format"),
    "min_inference_steps",
)
KINDS = (
    *("application/json", "multipart/form-data; boundary=b", "multipart/form-data", "text/plain"),
    *("application/x-www-form-urlencoded", "", "application/json; charset=utf-16", "\x7f"),
)
PICTURE = png(64, 48, b"abc")


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(spec_of(), video_spec_of())


def strange(rng: random.Random, depth: int = 0) -> Any:
    """Return a value that a field may hold or not."""
    scalars = [
        *(None, True, False, 0, -1, 1, 2, 10**9, 2**70, 0.5, -1e308, "", "x", "auto", "64x64"),
        *(
            "\x00",
            "\ud83d\ude00" * 5,
            "1" * 5000,
            "video_" + "0" * 32,
            "data:image/png;base64,AAAA",
        ),
    ]
    if depth > 2 or rng.random() < 0.8:
        return rng.choice(scalars)
    if rng.random() < 0.5:
        return [strange(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(("id", "image_url", "file_id", "x")): strange(rng, depth + 1)}


def form(rng: random.Random) -> bytes:
    parts = []
    for _ in range(rng.randrange(6)):
        name = rng.choice(FIELDS) + rng.choice(("", "[]", "[0]", "[image_url]", "[", "]"))
        file = '; filename="a.png"' if rng.random() < 0.4 else ""
        content = rng.choice((PICTURE, PICTURE[: rng.randrange(80)], b"x", b"\xff\xfe", b""))
        head = f'--b\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        parts.append(head + content + b"\r\n")
    whole = b"".join(parts) + b"--b--\r\n"
    return whole if rng.random() < 0.7 else whole[: rng.randrange(len(whole) + 1)]


def body(rng: random.Random, kind: str) -> bytes:
    if kind.startswith("multipart") and rng.random() < 0.9:
        return form(rng)
    fields = {rng.choice(FIELDS): strange(rng) for _ in range(rng.randrange(6))}
    text = json.dumps(fields).encode("utf-8", "surrogatepass")
    match rng.randrange(8):
        case 0:
            return rng.randbytes(rng.randrange(200))
        case 1:
            return text[: rng.randrange(len(text) + 1)]
        case 2:
            return b"[" * rng.randrange(5000)
    return text


async def send(client: httpx.AsyncClient, rng: random.Random) -> httpx.Response:
    kind, path = rng.choice(KINDS), rng.choice(PATHS)
    headers = {"content-type": kind} if kind else {}
    if rng.random() < 0.1:
        headers["range"] = rng.choice(("bytes=0-", "bytes=9-1", "bytes=-0", "x", "bytes=1-2,3-4"))
    query = f"?{rng.choice(('limit', 'after', 'order', 'variant', 'x'))}={rng.randrange(-5, 200)}"
    method = rng.choice(
        ("POST", "POST", "POST", "GET", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS")
    )
    url = path + (query if rng.random() < 0.3 else "")
    content = b"" if method in {"GET", "HEAD"} else body(rng, kind)
    return await client.request(method, url, content=content, headers=headers)


async def fuzz(serve: Serve, engine: FakeEngine, count: int) -> Counter[int]:
    statuses: Counter[int] = Counter()
    rng = random.Random(7)
    async with serve() as client:
        for number in range(count):
            state = rng.getstate()
            response = await send(client, rng)
            statuses[response.status_code] += 1
            assert response.status_code < 500, (number, hash(state), response.text)
            assert response.headers["x-request-id"]
            if response.status_code >= 400 and response.request.method != "HEAD":
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}
                assert "Traceback" not in response.text
                assert "msgspec" not in response.text
    assert len(engine.requests) == len({request.id for request in engine.requests})
    return statuses


async def test_malformed_requests_get_an_error_of_ours(serve: Serve, engine: FakeEngine) -> None:
    statuses = await fuzz(serve, engine, 300)
    assert {400, 404, 405, 415} <= set(statuses)


@pytest.mark.slow
async def test_fifty_thousand_malformed_requests_leak_nothing(
    serve: Serve, engine: FakeEngine
) -> None:
    await fuzz(serve, engine, 500)
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are all that counts
    await fuzz(serve, engine, 50_000)
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 5  # noqa: PTH208
