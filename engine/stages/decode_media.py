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
from engine.stages.batching import alike_together
from engine.stages.denoise import LATENTS
from engine.stages.finite import expect_finite
from engine.stages.media import views_of, write_image, write_video
from engine.stages.source import encode_source
from engine.stages.team import Team, at_most, collect, share
from engine.stages.tiles import tiles_shared
from engine.types import Artifact, GenerationRequest, Modality, Purpose, StageTask, Variant

FRAMES = 2  # of (B, C, F, h, w)


class DecodeMedia:
    """Autoencoder of one model, and the file writers."""

    def __init__(self, pipe: Any, code: FamilyCode) -> None:
        """Take the loaded components and the family's way to use them."""
        self._pipe, self._code = pipe, code

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job], team: Team) -> list[StageResult]:
        """Decode outputs and write them in their requests' formats, or encode sources.

        Outputs of one size are decoded as one batch, which may change their last bits.
        """
        return alike_together(jobs, _likeness, lambda alike: self._run(alike, team))

    def _run(self, jobs: Sequence[Job], team: Team) -> list[StageResult]:
        """Run jobs that are alike: sources one after another, outputs together."""
        if jobs[0].task.purpose is Purpose.IMAGE_ENCODE:
            sources = ((job.task.request, job.inputs) for job in jobs)
            return [StageResult(encode_source(self._pipe, *source)) for source in sources]
        pixels = self._decode([job.inputs[LATENTS] for job in jobs], jobs[0].task.request, team)
        if team.rank > 0:  # the leader has them all
            return [StageResult({}) for _job in jobs]
        expect_finite(pixels, "the decoded pixels")
        return [
            StageResult({}, self._artifact(job.task, pixels[i : i + 1]))
            for i, job in enumerate(jobs)
        ]

    def _decode(self, latents: Sequence[Tensor], request: GenerationRequest, team: Team) -> Tensor:
        """Return pixels of outputs of one size, whole on the leader only.

        A team shares out the frames of a video, and the tiles of a picture that is decoded in tiles.
        """
        batch = latents[0] if len(latents) == 1 else torch.cat(list(latents))
        if request.media.modality is Modality.VIDEO:
            frames = batch.shape[FRAMES]
            crew = at_most(team, frames)
            part = self._code.decode(self._pipe, request, share(crew, batch, dim=FRAMES))
            return collect(crew, part, dim=FRAMES, total=frames)
        tiling = self._pipe.tiling
        if tiling is None or tiling.tiles(request.shape) == 1:
            return self._code.decode(self._pipe, request, batch)
        with tiles_shared(self._pipe.vae, team):
            return self._code.decode(self._pipe, request, batch)

    def _artifact(self, task: StageTask, pixels: Tensor) -> Artifact:
        request = task.request
        if request.media.modality is Modality.VIDEO:
            frames = self._pipe.video_processor.postprocess_video(pixels, output_type="np")[0]
            return _artifact(task, write_video(frames, request.fps), views_of(frames))
        image = self._pipe.image_processor.postprocess(pixels, output_type="pil")[0]
        return _artifact(task, write_image(image, request.media, request.compression))


def _likeness(job: Job) -> tuple[str, str]:
    return job.task.purpose.value, str(job.task.request.shape)


def _artifact(task: StageTask, content: bytes, variants: tuple[Variant, ...] = ()) -> Artifact:
    return Artifact(
        index=task.image_index,
        content=content,
        media_type=task.request.media.media_type,
        shape=task.request.shape,
        seed=task.request.seed + task.image_index,
        sha256=hashlib.sha256(content).hexdigest(),
        variants=variants,
    )
