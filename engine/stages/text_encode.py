"""The encode stage: a prompt to conditioning tensors. Short, batchable, insensitive to degree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.stages.base import Boundary, FamilyCode, Snapshot, StageResult
from engine.stages.finite import expect_finite
from engine.types import StageTask


class TextEncode:
    """Text encoders and tokenizers of one model."""

    def __init__(self, pipe: Any, code: FamilyCode) -> None:
        """Take the loaded components and the family's way to use them."""
        self._pipe, self._code = pipe, code

    @torch.inference_mode()
    def run(
        self,
        task: StageTask,
        inputs: Mapping[str, Tensor],
        boundary: Boundary,
        snapshot: Snapshot | None = None,
    ) -> StageResult:
        """Encode the request's prompt once for all its outputs."""
        del inputs, boundary, snapshot
        tensors = self._code.encode(self._pipe, task.request)
        for name, tensor in tensors.items():
            expect_finite(tensor, name)
        return StageResult(tensors)
