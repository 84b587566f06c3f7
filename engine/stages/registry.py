"""From (model folder, family, stage kind) to a loaded stage, with only that stage's weights."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
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
    diffusers.utils.logging.set_verbosity_error()  # its warnings quote prompts
    index = _json(folder / "model_index.json")
    mine = [name for name in family.components[kind] if _is_component(index.get(name))]
    known = {name for names in family.components.values() for name in names}
    known |= {name for name, value in index.items() if isinstance(value, list)}
    pipeline_class = getattr(diffusers, family.pipeline_class)
    pipe = pipeline_class.from_pretrained(
        folder,
        dtype=dtype_for(device.type),
        local_files_only=True,
        use_safetensors=True,
        **{name: None for name in known if name not in mine},
    )
    pipe.vae_scale_factor = vae_scale_factor({"vae": _json(folder / "vae" / "config.json")})
    if kind is StageKind.ENCODE and "transformer" in index:
        _stand_in_for_transformer(pipe, _json(folder / "transformer" / "config.json"))
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _stand_in_for_transformer(pipe: Any, config: dict[str, Any]) -> None:
    """Let prompt encoding read the transformer's widths without its weights.

    SD3 without T5 fills the missing embedding with zeros of `joint_attention_dim`.
    """
    if pipe.transformer is None:
        object.__setattr__(pipe, "transformer", SimpleNamespace(config=SimpleNamespace(**config)))


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _is_component(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and value[0] is not None  # noqa: PLR2004 - [library, class]
