"""From (model folder, family, stage kind) to a loaded stage, with only that stage's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch

from engine.families import FAMILIES, Family, vae_scale_factor
from engine.stages.base import FamilyCode, Stage
from engine.stages.decode_media import DecodeMedia
from engine.stages.denoise import Denoise
from engine.stages.families.flux import Flux
from engine.stages.families.sd import AnimateDiff, StableDiffusion
from engine.stages.families.sd3 import StableDiffusion3
from engine.stages.text_encode import TextEncode
from engine.types import StageKind

_CODE: dict[str, type[FamilyCode]] = {
    "flux": Flux,
    "sd3": StableDiffusion3,
    "sd": StableDiffusion,
    "animatediff": AnimateDiff,
}
_STAGES: dict[StageKind, type[TextEncode | Denoise | DecodeMedia]] = {
    StageKind.ENCODE: TextEncode,
    StageKind.DIFFUSE: Denoise,
    StageKind.DECODE: DecodeMedia,
}


def load_stage(folder: Path, family_name: str, kind: StageKind, device: torch.device) -> Stage:
    """Load one stage of a diffusers folder onto a device: float32 on CPU, bfloat16 on CUDA."""
    family = next(family for family in FAMILIES.values() if family.name == family_name)
    pipe = _load_components(folder, family, kind, device)
    return _STAGES[kind](pipe, _CODE[family_name]())


def dtype_for(device_kind: str) -> torch.dtype:
    """Return the number format that weights are loaded in."""
    return torch.bfloat16 if device_kind == "cuda" else torch.float32


def _load_components(folder: Path, family: Family, kind: StageKind, device: torch.device) -> Any:
    diffusers.utils.logging.disable_progress_bar()
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    mine = family.components[kind]
    others = {
        name: None for name, value in index.items() if _is_component(value) and name not in mine
    }
    pipeline_class = getattr(diffusers, family.pipeline_class)
    pipe = pipeline_class.from_pretrained(
        folder, dtype=dtype_for(device.type), local_files_only=True, **others
    )
    vae_config = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
    pipe.vae_scale_factor = vae_scale_factor({"vae": vae_config})  # 8 is assumed without a VAE
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _is_component(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and value[0] is not None  # noqa: PLR2004 - [library, class]
