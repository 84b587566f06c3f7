"""Pixels to file bytes: images with Pillow, videos with PyAV."""

from __future__ import annotations

import io
import math
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from engine.types import MediaFormat, Variant

# Constant quality, visually lossless. Without look-ahead, because x264's macroblock tree made two
# encodings of the same frames differ in a few bytes (about one in three, even on one thread).
X264 = {"crf": "16", "x264-params": "rc-lookahead=0:mbtree=0"}

THUMBNAIL_PX, CELL_PX, MAX_CELLS = 512, 256, 16


def write_image(image: Image.Image, media: MediaFormat, compression: int) -> bytes:
    """Return the image as PNG, or as JPEG or WebP of quality `compression` (0..100)."""
    buffer = io.BytesIO()
    if media is MediaFormat.PNG:
        image.save(buffer, "PNG")
    else:
        image.save(buffer, media.value.upper(), quality=compression)
    return buffer.getvalue()


def write_video(frames: np.ndarray, fps: int) -> bytes:
    """Return frames (F, H, W, 3) in 0..1 as MP4: H.264, index before data, yuv420p if it can be.

    One encoder thread, so that the same frames always give the same bytes.
    """
    with tempfile.TemporaryDirectory() as folder:  # faststart reads the file back to move its index
        path = Path(folder) / "video.mp4"
        _encode(path, frames, fps)
        return path.read_bytes()


def views_of(frames: np.ndarray) -> tuple[Variant, ...]:
    """Return a thumbnail (WebP, the frame in the middle) and a spritesheet (JPEG, a grid)."""
    pictures = [Image.fromarray(pixels) for pixels in _bytes(frames)]
    middle = pictures[len(pictures) // 2]
    thumbnail = _shrunk(middle, THUMBNAIL_PX)
    return (
        Variant("thumbnail", write_image(thumbnail, MediaFormat.WEBP, 85), "image/webp"),
        Variant("spritesheet", write_image(_grid(pictures), MediaFormat.JPEG, 85), "image/jpeg"),
    )


def _grid(pictures: list[Image.Image]) -> Image.Image:
    """Return up to 16 frames, evenly spread, row by row."""
    count = min(len(pictures), MAX_CELLS)
    chosen = [pictures[i * len(pictures) // count] for i in range(count)]
    cells = [_shrunk(picture, CELL_PX) for picture in chosen]
    columns = math.ceil(math.sqrt(count))
    width, height = cells[0].size
    sheet = Image.new("RGB", (columns * width, math.ceil(count / columns) * height))
    for i, cell in enumerate(cells):
        sheet.paste(cell, (i % columns * width, i // columns * height))
    return sheet


def _shrunk(picture: Image.Image, longest_px: int) -> Image.Image:
    small = picture.copy()
    small.thumbnail((longest_px, longest_px))
    return small


def _bytes(frames: np.ndarray) -> np.ndarray:
    return (frames * 255).round().astype(np.uint8)


def _encode(path: Path, frames: np.ndarray, fps: int) -> None:
    with av.open(path, "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=X264)
        stream.height, stream.width = frames.shape[1:3]
        even = not (stream.height % 2 or stream.width % 2)
        stream.pix_fmt = "yuv420p" if even else "yuv444p"  # 4:2:0 has no odd sizes
        stream.codec_context.thread_count = 1
        stream.time_base = Fraction(1, fps)
        for pixels in _bytes(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
