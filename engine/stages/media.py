"""Pixels to file bytes: images with Pillow, videos with PyAV."""

from __future__ import annotations

import io
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from engine.types import MediaFormat

# Constant quality, visually lossless. Without look-ahead, because x264's macroblock tree made two
# encodings of the same frames differ in a few bytes (about one in three, even on one thread).
X264 = {"crf": "16", "x264-params": "rc-lookahead=0:mbtree=0"}


def write_image(image: Image.Image, media: MediaFormat, compression: int) -> bytes:
    """Return the image as PNG, or as JPEG or WebP of quality `compression` (0..100)."""
    buffer = io.BytesIO()
    if media is MediaFormat.PNG:
        image.save(buffer, "PNG")
    else:
        image.save(buffer, media.value.upper(), quality=compression)
    return buffer.getvalue()


def write_video(frames: np.ndarray, fps: int) -> bytes:
    """Return frames (F, H, W, 3) in 0..1 as MP4: H.264, yuv420p, index before data.

    One encoder thread, so that the same frames always give the same bytes.
    """
    with tempfile.TemporaryDirectory() as folder:  # faststart reads the file back to move its index
        path = Path(folder) / "video.mp4"
        _encode(path, frames, fps)
        return path.read_bytes()


def _encode(path: Path, frames: np.ndarray, fps: int) -> None:
    with av.open(path, "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=X264)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.time_base = Fraction(1, fps)
        for pixels in (frames * 255).round().astype(np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
