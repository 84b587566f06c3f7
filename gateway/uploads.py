"""Pictures from outside: read, checked and made into what a stage takes.

Bytes decide, not names or declared types. The number of pixels is read from the header before
anything is decoded, so a small file that unfolds into gigabytes is refused unopened. What goes on
is a PNG of exactly the size that will be drawn: no metadata, no surprises in a worker.
"""

from __future__ import annotations

import asyncio
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError

from gateway.errors import OverloadedError, RequestError

MAX_FILE_BYTES: Final = 50 * 1024 * 1024
MAX_PIXELS: Final = 40_000_000  # a 40-megapixel camera; as RGBA 160 MB while it is decoded
_FORMATS: Final = ("PNG", "JPEG", "WEBP")
_AT_ONCE: Final = 2  # decoded in threads, each with all its pixels in memory
_MOST_WAITING_BYTES: Final = 256 * 1024 * 1024  # of files; thousands of usual ones
_RETRY_AFTER_S: Final = 2.0
_OPAQUE: Final = 255


class Size(NamedTuple):
    """Width and height in pixels."""

    width_px: int
    height_px: int


class Picture(NamedTuple):
    """A checked upload; `param` is what the caller called it."""

    content: bytes
    size: Size
    param: str


class Darkroom:
    """Decodes uploads, a few at a time, off the event loop; how much may wait is bounded."""

    def __init__(self) -> None:
        """Begin idle."""
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._held_bytes = 0

    async def _develop(self, picture: Picture, work: Callable[[], bytes]) -> bytes:
        with self._held(len(picture.content)):
            async with self._places:
                return await asyncio.to_thread(work)

    @contextmanager
    def _held(self, size_bytes: int) -> Iterator[None]:
        """Count a file that waits or is decoded; one alone may be of any size."""
        if self._held_bytes and self._held_bytes + size_bytes > _MOST_WAITING_BYTES:
            message = (
                "The server is overloaded: too many pictures wait to be decoded. Please retry."
            )
            raise OverloadedError(message, retry_after_s=_RETRY_AFTER_S)
        self._held_bytes += size_bytes
        try:
            yield
        finally:
            self._held_bytes -= size_bytes

    async def source(self, picture: Picture, size: Size) -> bytes:
        """Return a picture as an opaque PNG of `size`: scaled to cover it, cropped in the middle.

        Raises:
            RequestError: its bytes are damaged.
            OverloadedError: too much waits already.
        """
        return await self._develop(picture, lambda: _source_png(picture, size))

    async def mask(self, mask: Picture, over: Size, size: Size) -> bytes:
        """Return a mask as a PNG of `size`, white where it was transparent.

        Raises:
            RequestError: it is damaged, has no transparency, or is not as large as the picture.
            OverloadedError: too much waits already.
        """
        if mask.size != over:
            message = (
                f"Invalid mask: it has {_text(mask.size)} pixels and the image {_text(over)}; they "
                "must be the same."
            )
            raise RequestError(message, code="invalid_image_file", param=mask.param)
        return await self._develop(mask, lambda: _mask_png(mask, size))


def checked(content: bytes, param: str) -> Picture:
    """Look at a picture's header.

    Raises:
        RequestError: it is too large, or no PNG, JPEG or WebP.
    """
    if len(content) > MAX_FILE_BYTES:
        message = f"Invalid file '{param}': it is larger than {MAX_FILE_BYTES >> 20} MB."
        raise RequestError(message, code="image_too_large", param=param)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we count ourselves
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                size = Size(*image.size)
                # Not a PNG's own method, which decodes all pixels to look for EXIF behind them.
                turned = Image.Image.getexif(image).get(0x0112, 1) in {5, 6, 7, 8}
    except UnidentifiedImageError as error:
        raise _unsupported(param) from error
    except Image.DecompressionBombError as error:
        raise _too_many_pixels("that", param) from error
    except Exception as error:  # parsers of foreign bytes raise whatever they like
        raise _damaged(param) from error
    if size.width_px * size.height_px > MAX_PIXELS:
        raise _too_many_pixels(_text(size), param)
    return Picture(content, Size(size.height_px, size.width_px) if turned else size, param)


def _source_png(picture: Picture, size: Size) -> bytes:
    image = _decoded(picture)
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image.convert("RGBA"))
    return _png(_fitted(image.convert("RGB"), size, Image.Resampling.LANCZOS))


def _mask_png(mask: Picture, size: Size) -> bytes:
    image = _decoded(mask)
    if image.mode not in {"RGBA", "LA", "PA"} and "transparency" not in image.info:
        message = (
            f"Invalid mask '{mask.param}': it has no transparency. Send a PNG whose fully "
            "transparent pixels are what may change."
        )
        raise RequestError(message, code="invalid_image_file", param=mask.param)
    alpha = image.convert("RGBA").getchannel("A")
    white = alpha.point(lambda value: 0 if value else _OPAQUE)
    return _png(_fitted(white, size, Image.Resampling.NEAREST))


def _decoded(picture: Picture) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(picture.content), formats=_FORMATS)
            return ImageOps.exif_transpose(image)
    except Exception as error:  # as above
        raise _damaged(picture.param) from error


def _fitted(image: Image.Image, size: Size, resampling: Image.Resampling) -> Image.Image:
    return image if image.size == tuple(size) else ImageOps.fit(image, size, method=resampling)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _text(size: Size) -> str:
    return f"{size.width_px}x{size.height_px}"


def _unsupported(param: str) -> RequestError:
    message = f"Invalid file '{param}': unsupported format. Send a PNG, JPEG or WebP image."
    return RequestError(message, code="unsupported_file_mimetype", param=param)


def _too_many_pixels(what: str, param: str) -> RequestError:
    message = (
        f"Invalid image '{param}': {what} is more than {MAX_PIXELS:,} pixels. Send a smaller one."
    )
    return RequestError(message, code="image_too_large", param=param)


def _damaged(param: str) -> RequestError:
    message = f"Invalid image file '{param}': its bytes are damaged. Save it again and retry."
    return RequestError(message, code="invalid_image_file", param=param)
