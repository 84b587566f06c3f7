"""Let a pipeline draw prompts, each from its own seed, so that batching changes no picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import StableDiffusionPipeline

    from models.training.seeing import Pixels


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a pipeline draws: steps, guidance, picture size and the first seed."""

    steps: int = 14
    guidance: float = 2.0
    width_px: int = 64
    height_px: int = 64
    seed: int = 0
    batch: int = 16


def draw_prompts(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], sampling: Sampling
) -> list[Pixels]:
    """One uint8 (H, W, 3) picture per prompt; prompt i starts from noise of seed + i."""
    pictures: list[Pixels] = []
    for start in range(0, len(prompts), sampling.batch):
        part = list(prompts[start : start + sampling.batch])
        seeds = range(sampling.seed + start, sampling.seed + start + len(part))
        drawn = pipeline(
            part,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            width=sampling.width_px,
            height=sampling.height_px,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
        ).images
        pictures.extend((np.asarray(drawn) * 255).round().astype(np.uint8))
    return pictures
