"""Put the trained parts into a stock `StableDiffusionPipeline`, and write it as a folder."""

from __future__ import annotations

import copy
import json
import shutil
from typing import TYPE_CHECKING

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from torch import nn

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

FLOW_SHIFT = 3.0
READABLE = 0o644


def build_scheduler() -> DPMSolverMultistepScheduler:
    """Second-order solver for a network that predicts the clean latent on a flow schedule."""
    return DPMSolverMultistepScheduler(
        prediction_type="sample",
        use_flow_sigmas=True,
        flow_shift=FLOW_SHIFT,
        solver_order=2,
        steps_offset=1,  # unused with flow sigmas, but the pipeline warns about any other value
    )


def assemble(
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    unet: UNet2DConditionModel,
    autoencoder: AutoencoderKL,
) -> StableDiffusionPipeline:
    """A ready pipeline without safety checker, silent progress bar."""
    pipeline = StableDiffusionPipeline(
        vae=autoencoder.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Save beside the folder, then swap part by part, so that a reader never sees half a file.

    Only the denoiser is stored in bfloat16: the others are small, and the exact encoder needs
    float32. Cards and settings that already lie in the folder stay.
    """
    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial, safe_serialization=True)
    # The cast of `Module` itself: the one of diffusers warns about parts that do not exist here.
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


def forget_origin(config: Path) -> None:
    """Leave out where a part was loaded from: a path of one machine helps nobody."""
    content = json.loads(config.read_text())
    content.pop("_name_or_path", None)
    config.write_text(json.dumps(content, indent=2) + "\n")
