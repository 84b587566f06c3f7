"""The encode stage: a prompt to conditioning tensors. Short, batchable, insensitive to degree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from engine.stages.base import FamilyCode, Job, StageResult
from engine.stages.finite import expect_finite
from engine.stages.team import Team


class TextEncode:
    """Text encoders and tokenizers of one model."""

    def __init__(self, pipe: Any, code: FamilyCode) -> None:
        """Take the loaded components and the family's way to use them."""
        self._pipe, self._code = pipe, code

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job], team: Team) -> list[StageResult]:
        """Encode each request's prompt once for all its outputs."""
        del team  # too short to be worth sharing
        return [self._encode(job) for job in jobs]

    def _encode(self, job: Job) -> StageResult:
        tensors = self._code.encode(self._pipe, job.task.request)
        for name, tensor in tensors.items():
            expect_finite(tensor, name)
        return StageResult(tensors)
