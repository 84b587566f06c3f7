"""The decode stage: latents to pixels to file bytes, in one place, so that only bytes leave."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from engine.stages.base import FamilyCode, OnStep, StageResult
from engine.stages.denoise import LATENTS
from engine.types import Artifact, GenerationRequest, MediaFormat, Shape, StageTask


class DecodeMedia:
    """Autoencoder of one model, and the image writer."""

    def __init__(self, pipe: Any, code: FamilyCode) -> None:
        """Take the loaded components and the family's way to use them."""
        self._pipe, self._code = pipe, code

    @torch.inference_mode()
    def run(self, task: StageTask, inputs: Mapping[str, Tensor], on_step: OnStep) -> StageResult:
        """Decode one output and write it in the request's format."""
        del on_step
        pixels = self._code.decode(self._pipe, task.request, inputs[LATENTS])
        image = self._pipe.image_processor.postprocess(pixels, output_type="pil")[0]
        return StageResult({}, _artifact(task, image))


def _artifact(task: StageTask, image: Image.Image) -> Artifact:
    content = write_image(image, task.request)
    return Artifact(
        index=task.image_index,
        content=content,
        media_type=f"image/{task.request.media.value}",
        shape=Shape(image.width, image.height),
        seed=task.request.seed + task.image_index,
        sha256=hashlib.sha256(content).hexdigest(),
    )


def write_image(image: Image.Image, request: GenerationRequest) -> bytes:
    """Return the image as PNG, or as JPEG or WebP of quality `request.compression`."""
    buffer = io.BytesIO()
    if request.media is MediaFormat.PNG:
        image.save(buffer, "PNG")
    else:
        image.save(buffer, request.media.value.upper(), quality=request.compression)
    return buffer.getvalue()
