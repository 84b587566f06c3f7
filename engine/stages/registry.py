"""From (model folder, family, stage kind) to a loaded stage, with only that stage's weights."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from torch import nn

from engine.cards import read_card
from engine.families import FAMILIES, Family, vae_scale_factor
from engine.stages.base import FamilyCode, Stage
from engine.stages.decode_media import DecodeMedia
from engine.stages.denoise import Denoise
from engine.stages.families.flux import Flux
from engine.stages.families.sd import AnimateDiff, StableDiffusion
from engine.stages.families.sd3 import StableDiffusion3
from engine.stages.text_encode import TextEncode
from engine.tiling import tiling_of
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
    return load_parts(folder, family_name, kind, dtype_for(device.type)).to(device)


class Parts:
    """A stage as its pipeline, so that its weights can be moved without the stage noticing.

    Attributes:
        stage: runs with whatever weights the modules hold.
        modules: the pipeline's components that have weights, by name.
    """

    def __init__(self, pipe: Any, family_name: str, kind: StageKind) -> None:
        """Take a pipeline with only the stage's own components."""
        self._pipe = pipe
        self.stage: Stage = _STAGES[kind](pipe, _CODE[family_name]())
        self.modules: dict[str, nn.Module] = {
            name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)
        }

    def to(self, device: torch.device) -> Stage:
        """Move the weights tensor by tensor and return the stage."""
        self._pipe.to(device)
        return self.stage


def dtype_for(device_kind: str) -> torch.dtype:
    """Return the number format that weights are loaded in."""
    return torch.bfloat16 if device_kind == "cuda" else torch.float32


def load_parts(folder: Path, family_name: str, kind: StageKind, dtype: torch.dtype) -> Parts:
    """Read one stage's weights from its files into this process's memory."""
    return _open_parts(folder, family_name, kind, dtype, {})


def sketch_parts(folder: Path, family_name: str, kind: StageKind) -> Parts:
    """Build one stage without weights: parameters on the `meta` device, to be bound to a copy."""
    index = _json(folder / "model_index.json")
    family = _family(family_name)
    sketches = {
        name: sketch
        for name in _present(index, family, kind)
        if (sketch := _sketch(folder / name, *index[name])) is not None
    }
    return _open_parts(folder, family_name, kind, torch.float32, sketches)


def _sketch(folder: Path, library: str, class_name: str) -> nn.Module | None:
    """Return a component without weights; None for one that has none (tokenizer, scheduler)."""
    found = getattr(importlib.import_module(library), class_name)
    with init_empty_weights(include_buffers=False):
        if issubclass(found, diffusers.ModelMixin):
            made = found.from_config(found.load_config(folder, local_files_only=True))
        elif issubclass(found, transformers.PreTrainedModel):
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            made = found(config)
        else:
            return None
    sketch: nn.Module = made.eval()
    return sketch


def _family(name: str) -> Family:
    return next(family for family in FAMILIES.values() if family.name == name)


def _present(index: Mapping[str, Any], family: Family, kind: StageKind) -> list[str]:
    return [name for name in family.components[kind] if _is_component(index.get(name))]


def _open_parts(
    folder: Path,
    family_name: str,
    kind: StageKind,
    dtype: torch.dtype,
    given: Mapping[str, nn.Module],
) -> Parts:
    """Open a stage's pipeline; components that are not `given` are read from the folder."""
    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()  # its warnings quote prompts
    family, index = _family(family_name), _json(folder / "model_index.json")
    mine = _present(index, family, kind)
    known = {name for names in family.components.values() for name in names}
    known |= {name for name, value in index.items() if isinstance(value, list)}
    pipeline_class = getattr(diffusers, family.pipeline_class)
    pipe = pipeline_class.from_pretrained(
        folder,
        dtype=dtype,
        local_files_only=True,
        use_safetensors=True,
        **{name: None for name in known if name not in mine},
        **given,
    )
    vae = {"vae": _json(folder / "vae" / "config.json")}
    pipe.vae_scale_factor = vae_scale_factor(vae)
    pipe.tiling = tiling_of(vae, read_card(folder).tiled_above_pixels)
    if kind is StageKind.ENCODE and "transformer" in index:
        _stand_in_for_transformer(pipe, _json(folder / "transformer" / "config.json"))
    pipe.set_progress_bar_config(disable=True)
    return Parts(pipe, family_name, kind)


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
