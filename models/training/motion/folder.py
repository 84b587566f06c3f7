"""Put the trained parts into a stock `AnimateDiffPipeline`, and write it as a folder."""

from __future__ import annotations

import copy
import shutil
from typing import TYPE_CHECKING

import torch
from diffusers import AnimateDiffPipeline
from torch import nn

from models.training.assembly import READABLE, build_scheduler, forget_origin

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import AutoencoderKL, UNetMotionModel
    from transformers import CLIPTextModel, CLIPTokenizer

FLOW_SHIFT = 6.0
"""Twice that of the stills: a course is decided in the first, noisiest part of the way."""


def assemble(
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    unet: UNetMotionModel,
    autoencoder: AutoencoderKL,
) -> AnimateDiffPipeline:
    """A ready pipeline, silent progress bar.

    `motion_adapter` is left empty: a `UNetMotionModel` holds the motion modules itself, and the
    pipeline needs an adapter only to inflate an image UNet, so nothing is stored twice.
    """
    scheduler = build_scheduler()
    pipeline = AnimateDiffPipeline(
        vae=autoencoder.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        motion_adapter=None,
        scheduler=type(scheduler).from_config(scheduler.config, flow_shift=FLOW_SHIFT),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write(pipeline: AnimateDiffPipeline, folder: Path) -> None:
    """Save beside the folder, then swap part by part, so that a reader never sees half a file.

    Only the denoiser is stored in bfloat16, as in the folder of the stills. Cards and settings
    that already lie in the folder stay.
    """
    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial, safe_serialization=True)
    half = nn.Module.to(copy.deepcopy(pipeline.unet), torch.bfloat16)
    half.save_pretrained(partial / "unet", safe_serialization=True)
    for config in partial.glob("*/config.json"):
        forget_origin(config)
    for part in sorted(path for path in partial.rglob("*") if path.is_file()):
        target = folder / part.relative_to(partial)
        target.parent.mkdir(parents=True, exist_ok=True)
        part.chmod(READABLE)
        part.replace(target)
    shutil.rmtree(partial)
