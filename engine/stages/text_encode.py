"""The encode stage: a prompt to conditioning tensors. Short, batchable, insensitive to degree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from engine.stages.base import FamilyCode, Job, StageResult
from engine.stages.batching import alike_together
from engine.stages.finite import expect_finite
from engine.stages.team import Team


class TextEncode:
    """Text encoders and tokenizers of one model."""

    def __init__(self, pipe: Any, code: FamilyCode) -> None:
        """Take the loaded components and the family's way to use them."""
        self._pipe, self._code = pipe, code

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job], team: Team) -> list[StageResult]:
        """Encode each request's prompt once for all its outputs.

        Prompts of several requests go through the encoders as one batch, which may change the
        last bits of their embeddings.
        """
        del team  # too short to be worth sharing
        return alike_together(jobs, _is_guided, self._encode)

    def _encode(self, jobs: Sequence[Job]) -> list[StageResult]:
        encoded = self._code.encode(self._pipe, [job.task.request for job in jobs])
        for tensors in encoded:
            for name, tensor in tensors.items():
                expect_finite(tensor, name)
        return [StageResult(tensors) for tensors in encoded]


def _is_guided(job: Job) -> bool:
    """Whether the negative prompt is encoded too."""
    return job.task.request.guidance_scale > 1
