"""GET /v1/videos/{id}/content: all bytes, or a range of them."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.gateway.conftest import Serve
from tests.gateway.test_videos_api import PATH, film, made
from tests.support.fake_engine import FakeEngine, mp4_shape, video_spec_of


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(video_spec_of())


@pytest.fixture
async def url(client: httpx.AsyncClient) -> str:
    return f"{PATH}/{(await made(client))['id']}/content"


async def test_a_completed_video_is_an_mp4_of_the_shape_asked_for(
    client: httpx.AsyncClient,
) -> None:
    video = (await made(client, size="64x64", frames=9))["id"]
    response = await client.get(f"{PATH}/{video}/content?variant=video")
    assert (response.status_code, response.headers["content-type"]) == (200, "video/mp4")
    assert str(mp4_shape(response.content)) == "64x64x9"
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["content-length"] == str(len(response.content))
    assert f'filename="{video}.mp4"' in response.headers["content-disposition"]


async def test_an_unfinished_video_has_no_content(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.gate.clear()
    video = (await film(client)).json()["id"]
    response = await client.get(f"{PATH}/{video}/content")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "video_not_completed")


@pytest.mark.parametrize(
    ("variant", "kind", "start"),
    [("thumbnail", "image/webp", b"RIFF"), ("spritesheet", "image/jpeg", b"\xff\xd8")],
)
async def test_a_video_has_other_views(
    client: httpx.AsyncClient, url: str, variant: str, kind: str, start: bytes
) -> None:
    response = await client.get(url, params={"variant": variant})
    assert (response.status_code, response.headers["content-type"]) == (200, kind)
    assert response.content.startswith(start)
    part = await client.get(url, params={"variant": variant}, headers={"range": "bytes=0-1"})
    assert (part.status_code, part.content) == (206, start[:2])


async def test_an_unknown_variant_is_refused(client: httpx.AsyncClient, url: str) -> None:
    response = await client.get(url, params={"variant": "poster"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "variant")


async def test_its_headers_can_be_had_alone(client: httpx.AsyncClient, url: str) -> None:
    whole = await client.get(url)
    head = await client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))
    assert head.headers["etag"] == whole.headers["etag"]
    part = await client.head(url, headers={"range": "bytes=0-3"})
    assert (part.status_code, part.headers["content-length"]) == (206, "4")


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        ("bytes=5-", 5, None),
        ("bytes=-7", -7, None),
        ("bytes=0-99999999", 0, None),
        ("bytes=-99999999", 0, None),
    ],
)
async def test_a_range_is_answered_with_just_that(
    client: httpx.AsyncClient, url: str, header: str, start: int, end: int | None
) -> None:
    whole = (await client.get(url)).content
    response = await client.get(url, headers={"range": header})
    assert response.status_code == 206
    assert response.content == whole[start:end]
    first, last, _ = slice(start, end).indices(len(whole))
    assert response.headers["content-range"] == f"bytes {first}-{last - 1}/{len(whole)}"


@pytest.mark.parametrize("header", ["bytes=99999999-", "bytes=-0"])
async def test_a_range_outside_the_file_is_told_the_size(
    client: httpx.AsyncClient, url: str, header: str
) -> None:
    size = len((await client.get(url)).content)
    response = await client.get(url, headers={"range": header})
    assert (response.status_code, response.headers["content-range"]) == (416, f"bytes */{size}")
    assert response.json()["error"]["code"] == "range_not_satisfiable"


@pytest.mark.parametrize("header", ["bytes=9-5", "bytes=0-1,4-5", "lines=1-2", "bytes=-", "x"])
async def test_a_range_that_we_do_not_read_gives_the_whole_file(
    client: httpx.AsyncClient, url: str, header: str
) -> None:
    response = await client.get(url, headers={"range": header})
    assert (response.status_code, response.content[4:8]) == (200, b"ftyp")


async def test_a_range_of_another_version_gives_the_whole_file(
    client: httpx.AsyncClient, url: str
) -> None:
    etag = (await client.get(url)).headers["etag"]
    asked = {"range": "bytes=0-3", "if-range": '"other"'}
    assert (await client.get(url, headers=asked)).status_code == 200
    assert (await client.get(url, headers={**asked, "if-range": etag})).status_code == 206


async def test_a_known_video_is_not_sent_twice(client: httpx.AsyncClient, url: str) -> None:
    etag = (await client.get(url)).headers["etag"]
    again = await client.get(url, headers={"if-none-match": etag})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("header", [None, "bytes=0-3"])
async def test_bytes_that_somebody_removed_are_missing(
    client: httpx.AsyncClient, url: str, tmp_path: Path, header: str | None
) -> None:
    for file in (tmp_path / "artifacts").rglob("*.mp4"):
        file.unlink()
    response = await client.get(url, headers={"range": header} if header else {})
    assert response.status_code == 404


async def test_the_openapi_document_shows_both_bodies_and_the_query(serve: Serve) -> None:
    async with serve() as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    bodies = paths["/v1/videos"]["post"]["requestBody"]["content"]
    assert set(bodies) == {"multipart/form-data", "application/json"}
    listing = {parameter["name"] for parameter in paths["/v1/videos"]["get"]["parameters"]}
    assert listing == {"after", "limit", "order"}
    content = paths["/v1/videos/{video_id}/content"]["get"]["parameters"]
    assert {parameter["name"] for parameter in content} == {"video_id", "variant"}
