"""The diffusers pipeline families that the engine serves, described without importing torch.

A family says which components each stage needs and what sizes it can draw. The code that runs the
stages of a family is in `engine.stages.families`, loaded only in workers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import lcm
from typing import Any

import msgspec

from engine.types import Modality, StageKind

TEAM_SIZES = (1, 2, 4, 8)
ComponentConfigs = Mapping[str, Mapping[str, Any]]


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """What is the same for all models of one diffusers pipeline class.

    `size_multiple_px(configs)` is what width and height must divide by, `max_side_px(configs)`
    the longest side that the denoiser's position embedding reaches (None: no such bound).
    `floors_strength` is how the library rounds the steps that a source's strength leaves: down for
    the older pipelines, up for those after SD3. `degrees` are the numbers of devices that a
    diffuse can be shared out among, `decodes_frames` tells whether a film is decoded frame by frame.
    `denoisers` are the classes that its denoiser may have; `optional` components may be absent.
    """

    name: str
    pipeline_class: str
    components: Mapping[StageKind, tuple[str, ...]]
    denoisers: tuple[str, ...]
    size_multiple_px: Callable[[ComponentConfigs], int]
    max_side_px: Callable[[ComponentConfigs], int | None]
    default_steps: int
    default_guidance: float
    uses_negative_prompt: bool
    modality: Modality = Modality.IMAGE
    floors_strength: bool = False
    degrees: tuple[int, ...] = TEAM_SIZES
    decodes_frames: bool = False
    optional: frozenset[str] = frozenset()


def vae_scale_factor(configs: ComponentConfigs) -> int:
    """Return pixels per latent cell along one side: 2 per down-sampling block."""
    return int(2 ** (len(configs["vae"]["block_out_channels"]) - 1))


def _flux_multiple(configs: ComponentConfigs) -> int:
    return vae_scale_factor(configs) * 2  # latents are packed in 2x2 patches


def _sd3_multiple(configs: ComponentConfigs) -> int:
    return vae_scale_factor(configs) * int(configs["transformer"]["patch_size"])


def _sd3_max_side(configs: ComponentConfigs) -> int:
    return int(configs["transformer"]["pos_embed_max_size"]) * _sd3_multiple(configs)


def _sd_multiple(configs: ComponentConfigs) -> int:
    halvings = len(configs["unet"]["block_out_channels"]) - 1
    return lcm(8, vae_scale_factor(configs) * 2**halvings)  # diffusers itself insists on 8


def _unbounded(_configs: ComponentConfigs) -> None:
    return None


FLUX = Family(
    name="flux",
    pipeline_class="FluxPipeline",
    denoisers=("FluxTransformer2DModel",),
    components={
        StageKind.ENCODE: ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2"),
        StageKind.DIFFUSE: ("transformer", "scheduler"),
        StageKind.DECODE: ("vae",),
    },
    size_multiple_px=_flux_multiple,
    max_side_px=_unbounded,
    default_steps=28,
    default_guidance=3.5,
    uses_negative_prompt=False,
)

SD3 = Family(
    name="sd3",
    pipeline_class="StableDiffusion3Pipeline",
    denoisers=("SD3Transformer2DModel",),
    optional=frozenset({"text_encoder_3", "tokenizer_3"}),
    components={
        StageKind.ENCODE: (
            *("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2"),
            *("tokenizer_3", "text_encoder_3"),
        ),
        StageKind.DIFFUSE: ("transformer", "scheduler"),
        StageKind.DECODE: ("vae",),
    },
    size_multiple_px=_sd3_multiple,
    max_side_px=_sd3_max_side,
    default_steps=28,
    default_guidance=7.0,
    uses_negative_prompt=True,
)

STABLE_DIFFUSION = Family(
    name="sd",
    pipeline_class="StableDiffusionPipeline",
    denoisers=("UNet2DConditionModel",),
    components={
        StageKind.ENCODE: ("tokenizer", "text_encoder"),
        StageKind.DIFFUSE: ("unet", "scheduler"),
        StageKind.DECODE: ("vae",),
    },
    size_multiple_px=_sd_multiple,
    max_side_px=_unbounded,
    default_steps=28,
    default_guidance=7.5,
    uses_negative_prompt=True,
    degrees=(1, 2),  # the branches of guidance; nothing else is shared out
    floors_strength=True,
)

ANIMATEDIFF = Family(
    name="animatediff",
    pipeline_class="AnimateDiffPipeline",
    denoisers=("UNetMotionModel", "UNet2DConditionModel"),  # the latter with a motion adapter
    optional=frozenset({"motion_adapter"}),
    components={
        StageKind.ENCODE: ("tokenizer", "text_encoder"),
        StageKind.DIFFUSE: ("unet", "motion_adapter", "scheduler"),
        StageKind.DECODE: ("vae",),
    },
    size_multiple_px=_sd_multiple,
    max_side_px=_unbounded,
    default_steps=25,
    default_guidance=7.5,
    uses_negative_prompt=True,
    modality=Modality.VIDEO,
    decodes_frames=True,
    floors_strength=True,
)

FAMILIES: Mapping[str, Family] = {
    family.pipeline_class: family for family in (FLUX, SD3, STABLE_DIFFUSION, ANIMATEDIFF)
}


def family_named(name: str) -> Family:
    """Return a family by its own name; raises `KeyError` for one that is not served."""
    return _BY_NAME[name]


_BY_NAME: Mapping[str, Family] = {family.name: family for family in FAMILIES.values()}
