"""The diffuse stage: the denoise loop, step by step, so that every step is a place to stop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.stages.base import FamilyCode, OnStep, StageResult
from engine.types import StageTask

LATENTS = "latents"


class Denoise:
    """Denoiser and scheduler of one model."""

    def __init__(self, pipe: Any, code: FamilyCode) -> None:
        """Take the loaded components and the family's way to use them."""
        self._pipe, self._code = pipe, code

    @torch.inference_mode()
    def run(self, task: StageTask, inputs: Mapping[str, Tensor], on_step: OnStep) -> StageResult:
        """Denoise one output; `on_step` may raise to stop between two steps."""
        seed = task.request.seed + task.image_index
        trajectory = self._code.begin(self._pipe, task.request, seed, inputs)
        while trajectory.step < trajectory.steps:
            trajectory.advance()
            on_step(trajectory.step, trajectory.steps)
        return StageResult({LATENTS: trajectory.latents})
