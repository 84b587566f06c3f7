"""Let a video pipeline film prompts, each from its own seed, so that batching changes no clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from models.training.motion.movements import FRAMES, SIDE_PX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import AnimateDiffPipeline

    from models.training.motion.watching import Clip


@dataclass(frozen=True, slots=True)
class Shooting:
    """How a pipeline films: steps, guidance, frames, picture size and the first seed."""

    steps: int = 12
    guidance: float = 2.0
    frames: int = FRAMES
    width_px: int = SIDE_PX
    height_px: int = SIDE_PX
    seed: int = 0
    batch: int = 4


def film_prompts(
    pipeline: AnimateDiffPipeline, prompts: Sequence[str], shooting: Shooting
) -> list[Clip]:
    """One uint8 (F, H, W, 3) clip per prompt; prompt i starts from noise of seed + i."""
    clips: list[Clip] = []
    for start in range(0, len(prompts), shooting.batch):
        part = list(prompts[start : start + shooting.batch])
        seeds = range(shooting.seed + start, shooting.seed + start + len(part))
        filmed = pipeline(
            part,
            num_inference_steps=shooting.steps,
            guidance_scale=shooting.guidance,
            num_frames=shooting.frames,
            width=shooting.width_px,
            height=shooting.height_px,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
        ).frames
        clips.extend((np.asarray(filmed) * 255).round().astype(np.uint8))
    return clips
