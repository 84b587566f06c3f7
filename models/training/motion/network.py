"""The video denoiser: the UNet of the stills with temporal attention between its layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers import MotionAdapter, UNetMotionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import nn

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

MOTION_HEADS = 4
SELF_ATTENTION = 1.5
"""Queries and keys start as this multiple of their input."""
MOST_FRAMES = 40
"""Length of the table of frame positions; training fixes how many of them mean something."""
_TABLE = "pos_embed.pe"
"""The table: waves, not trained, so a longer one starts like a shorter one."""


def inflate(unet: UNet2DConditionModel) -> UNetMotionModel:
    """A stock motion UNet that, at first, draws every frame as the UNet of the stills would.

    The weights of `unet` are copied, not shared.
    """
    adapter = MotionAdapter(
        block_out_channels=tuple(unet.config.block_out_channels),
        motion_layers_per_block=unet.config.layers_per_block,
        motion_num_attention_heads=MOTION_HEADS,
        motion_norm_num_groups=unet.config.norm_num_groups,
        motion_max_seq_length=MOST_FRAMES,
    )
    for module in adapter.modules():
        if isinstance(module, AnimateDiffTransformer3D):
            _start(module)
    model = UNetMotionModel.from_unet2d(unet, adapter)
    # Explicit matrix products: the backward pass of fused attention is slow on a CPU.
    model.set_attn_processor(AttnProcessor())
    return model


def lengthened(old: UNetMotionModel) -> UNetMotionModel:
    """The same model with a table of frame positions that is long enough for all clips."""
    model = UNetMotionModel.from_config({**old.config, "motion_max_seq_length": MOST_FRAMES})
    weights = {n: value for n, value in old.state_dict().items() if not n.endswith(_TABLE)}
    model.load_state_dict(weights, strict=False)
    model.set_attn_processor(AttnProcessor())
    return model


@torch.no_grad()
def _start(module: AnimateDiffTransformer3D) -> None:
    """Begin without effect, each frame looking at itself and its neighbours.

    Diffusers starts with random projections throughout. The last one is set to zero, so that the
    stills are undisturbed. Queries and keys start as multiples of the identity: what they compare
    are then frame positions and contents. Random ones attend evenly to all frames, so that no frame
    knows its number until they have been trained.
    """
    torch.nn.init.zeros_(module.proj_out.weight)
    torch.nn.init.zeros_(module.proj_out.bias)
    for block in module.transformer_blocks:
        for attention in (block.attn1, block.attn2):
            for projection in (attention.to_q, attention.to_k):
                torch.nn.init.eye_(projection.weight).mul_(SELF_ATTENTION)


def parts_of(model: UNetMotionModel) -> tuple[nn.ModuleDict, nn.ModuleDict]:
    """What comes from the stills and what is new, named as in the model."""
    motion = {n: m for n, m in model.named_modules() if isinstance(m, AnimateDiffTransformer3D)}
    stills = {}
    for name, module in model.named_modules():
        is_own = bool(list(module.parameters(recurse=False)))
        if is_own and not any(name.startswith(f"{new}.") for new in motion):
            stills[name] = module
    return _dict_of(stills), _dict_of(motion)


def _dict_of(modules: dict[str, nn.Module]) -> nn.ModuleDict:
    """Dots are not allowed in the keys of a `ModuleDict`."""
    return nn.ModuleDict({name.replace(".", "/"): module for name, module in modules.items()})
