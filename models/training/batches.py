"""Drawings as tensors: the one place where numpy pictures become torch batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from models.training.painting import draw

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.training.scenes import Scene


def pictures_of(scenes: Sequence[Scene], device: torch.device) -> torch.Tensor:
    """Draw scenes of one size into a (B, 3, H, W) batch in [-1, 1]."""
    stacked = np.stack([draw(scene) for scene in scenes])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous().to(device)


def as_pixels(pictures: torch.Tensor) -> np.ndarray:
    """A (B, 3, H, W) batch in [-1, 1] as uint8 (B, H, W, 3), as a viewer would get it."""
    scaled = (pictures.detach().float().cpu().clamp(-1, 1) + 1) * 127.5
    return scaled.round().byte().permute(0, 2, 3, 1).numpy()
