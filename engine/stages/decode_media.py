"""The decode stage: latents to pixels to file bytes, in one place, so that only bytes leave.

It holds the autoencoder, so it also encodes the pictures that a request begins with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engine.stages.base import FamilyCode, Job, StageResult
from engine.stages.denoise import LATENTS
from engine.stages.finite import expect_finite
from engine.stages.media import write_image, write_video
from engine.stages.source import encode_source
from engine.stages.team import Team
from engine.types import Artifact, Modality, Purpose, StageTask


class DecodeMedia:
    """Autoencoder of one model, and the file writers."""

    def __init__(self, pipe: Any, code: FamilyCode) -> None:
        """Take the loaded components and the family's way to use them."""
        self._pipe, self._code = pipe, code

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job], team: Team) -> list[StageResult]:
        """Decode outputs and write them in their requests' formats, or encode sources."""
        del team
        return [self._run(job) for job in jobs]

    def _run(self, job: Job) -> StageResult:
        task = job.task
        if task.purpose is Purpose.IMAGE_ENCODE:
            return StageResult(encode_source(self._pipe, task.request, job.inputs))
        pixels = self._code.decode(self._pipe, task.request, job.inputs[LATENTS])
        expect_finite(pixels, "the decoded pixels")
        return StageResult({}, _artifact(task, self._write(task, pixels)))

    def _write(self, task: StageTask, pixels: Tensor) -> bytes:
        request = task.request
        if request.media.modality is Modality.VIDEO:
            frames = self._pipe.video_processor.postprocess_video(pixels, output_type="np")[0]
            return write_video(frames, request.fps)
        image = self._pipe.image_processor.postprocess(pixels, output_type="pil")[0]
        return write_image(image, request.media, request.compression)


def _artifact(task: StageTask, content: bytes) -> Artifact:
    return Artifact(
        index=task.image_index,
        content=content,
        media_type=task.request.media.media_type,
        shape=task.request.shape,
        seed=task.request.seed + task.image_index,
        sha256=hashlib.sha256(content).hexdigest(),
    )
