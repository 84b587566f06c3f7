"""POST /v1/images/edits and /variations: pictures in, checked; what the engine gets of them."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageFile

from gateway.uploads import checked
from tests.gateway.conftest import Serve
from tests.support.fake_engine import FakeEngine, png, png_size

EDITS, VARIATIONS = "/v1/images/edits", "/v1/images/variations"
RED = png(64, 48, b"\xff\0\0")


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def mask(
    size: tuple[int, int] = (64, 48), hole: tuple[int, int, int, int] = (8, 8, 24, 24)
) -> bytes:
    image = Image.new("RGBA", size, (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), hole)
    return file_of(image)


async def edit(client: httpx.AsyncClient, **parts: Any) -> httpx.Response:
    form = {"prompt": (None, "blue"), "image": ("a.png", RED), **parts}
    return await client.post(EDITS, files={k: v for k, v in form.items() if v is not None})


async def test_an_edit_begins_with_the_picture_and_answers_like_a_generation(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    response = await edit(client, seed=(None, "5"), n=(None, "2"))
    body = response.json()
    assert (response.status_code, len(body["data"]), body["seed"]) == (200, 2, 5)
    assert (body["size"], body["usage"]["input_tokens_details"]["image_tokens"]) == ("64x48", 12)
    request = engine.requests[0]
    assert request.source is not None
    assert (request.source.strength, request.source.schedule_steps, request.steps) == (0.8, 8, 7)
    [content] = engine.files[0].values()
    assert png_size(content) == (64, 48)
    assert Image.open(io.BytesIO(content)).getpixel((5, 5)) == (255, 0, 0)


async def test_a_mask_is_white_where_it_was_transparent(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    response = await edit(client, mask=("m.png", mask()))
    assert response.status_code == 200
    source = engine.requests[0].source
    assert source is not None
    assert source.mask is not None
    assert source.strength == 1.0
    painted = Image.open(io.BytesIO(engine.files[0][source.mask]))
    assert (painted.getpixel((10, 10)), painted.getpixel((40, 40))) == (255, 0)


@pytest.mark.parametrize(
    ("fields", "strength"),
    [
        ({"input_fidelity": "high"}, 0.6),
        ({"strength": "0.5"}, 0.5),
        ({"strength": "0.5", "input_fidelity": "high"}, 0.5),
    ],
)
async def test_how_much_is_new_is_what_was_asked_for(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, str], strength: float
) -> None:
    await edit(client, **{name: (None, value) for name, value in fields.items()})
    source = engine.requests[0].source
    assert source is not None
    assert source.strength == strength


@pytest.mark.parametrize("name", ["image", "image[]", "image[0]"])
async def test_the_picture_is_found_under_every_name_that_clients_use(
    client: httpx.AsyncClient, name: str
) -> None:
    form = {"prompt": (None, "x"), name: ("upload", RED, "application/octet-stream")}
    assert (await client.post(EDITS, files=form)).status_code == 200


async def test_a_picture_of_any_size_is_fitted_to_the_model(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    photo = file_of(Image.new("RGB", (2000, 1000), "green"), "JPEG")
    body = (await edit(client, image=("photo.jpg", photo))).json()
    assert body["size"] == "512x256"
    asked = (await edit(client, image=("photo.jpg", photo), size=(None, "64x64"))).json()
    assert asked["size"] == "64x64"
    assert {png_size(content) for files in engine.files for content in files.values()} == {
        (512, 256),
        (64, 64),
    }


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
async def test_a_photo_is_turned_as_its_camera_says(client: httpx.AsyncClient, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = file_of(Image.new("RGB", (96, 64), "red"), kind, exif=exif)
    assert (await edit(client, image=("p", photo))).json()["size"] == "64x96"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_nothing_is_decoded_before_its_pixels_are_counted(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_: ImageFile.ImageFile) -> None:
        pytest.fail("decoded on the event loop, and perhaps too large for memory")

    photo = file_of(Image.new("RGB", (96, 64), "red"), kind)
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert checked(photo, "image").size == (96, 64)


async def test_a_json_body_carries_data_urls(client: httpx.AsyncClient) -> None:
    url = "data:image/png;base64," + base64.b64encode(RED).decode()
    body = {"prompt": "x", "images": [{"image_url": url}], "seed": 1}
    assert (await client.post(EDITS, json=body)).status_code == 200


def bomb() -> bytes:
    """A small PNG whose header promises four hundred megapixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


BAD_PARTS = [
    ({"image": None}, "image", "missing_required_parameter"),
    ({"prompt": None}, "prompt", "missing_required_parameter"),
    ({"image": (None, "text")}, "image", "invalid_type"),
    ({"image": ("a.png", b"")}, "image", "unsupported_file_mimetype"),
    ({"image": ("a.png", b"GIF89a" + bytes(40))}, "image", "unsupported_file_mimetype"),
    ({"image": ("a.png", RED[:60])}, "image", "invalid_image_file"),
    ({"image": ("a.png", bomb())}, "image", "image_too_large"),
    ({"mask": ("m.png", mask((32, 32)))}, "mask", "invalid_image_file"),
    ({"mask": ("m.png", RED)}, "mask", "invalid_image_file"),
    ({"mask": ("m.png", b"no")}, "mask", "unsupported_file_mimetype"),
    ({"markup": ("m.png", RED)}, "markup", "unknown_parameter"),
    ({"strength": (None, "0")}, "strength", "decimal_below_min_value"),
    ({"input_fidelity": (None, "none")}, "input_fidelity", "invalid_value"),
    ({"n": ("n.txt", b"2")}, "n", "invalid_type"),
    ({"n": (None, "two")}, "n", "invalid_type"),
    ({"background": (None, "transparent")}, "background", "invalid_value"),
]


@pytest.mark.parametrize(("parts", "param", "code"), BAD_PARTS)
async def test_a_wrong_part_is_named_and_reaches_no_worker(
    client: httpx.AsyncClient, engine: FakeEngine, parts: dict[str, Any], param: str, code: str
) -> None:
    response = await edit(client, **parts)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)
    assert engine.requests == []


async def test_two_pictures_are_more_than_a_model_takes(client: httpx.AsyncClient) -> None:
    parts = [("prompt", (None, "x")), *(("image[]", ("a.png", RED)) for _ in range(2))]
    response = await client.post(EDITS, files=parts)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "array_above_max_length")


@pytest.mark.parametrize(
    "reference",
    [
        {"image_url": "https://example.com/a.png"},
        {"file_id": "file-1"},
        {},
        {"image_url": "data:x"},
    ],
)
async def test_nothing_is_fetched_for_a_caller(
    client: httpx.AsyncClient, reference: dict[str, str]
) -> None:
    response = await client.post(EDITS, json={"prompt": "x", "images": [reference]})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "images[0]")


async def test_an_upload_that_is_too_large_is_refused(client: httpx.AsyncClient) -> None:
    response = await edit(client, image=("a.png", bytes(60_000_000)))
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")


async def test_what_a_refused_job_would_have_begun_with_is_not_kept(
    serve: Serve, tmp_path: Path
) -> None:
    async with serve(queue_limit=0) as client:
        response = await edit(client)
    assert response.status_code == 503
    assert list((tmp_path / "artifacts").rglob("*.png")) == []


async def test_a_variation_needs_no_prompt(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    response = await client.post(VARIATIONS, files={"image": ("a.png", RED)})
    assert response.status_code == 200
    request = engine.requests[0]
    assert request.source is not None
    assert (request.prompt, request.source.strength) == ("", 0.6)


async def test_more_pixels_than_one_request_may_have_are_refused(serve: Serve) -> None:
    async with serve(max_image_pixels=64 * 48 * 3) as client:
        response = await client.post("/v1/images/generations", json={"prompt": "x", "n": 4})
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("n", "integer_above_max_value")
