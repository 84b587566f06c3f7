"""What a component's folder weighs, read from file names and safetensors headers alone."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

from engine.errors import PipelineError

_WEIGHT_NAMES = ("diffusion_pytorch_model", "model")
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".ckpt", ".msgpack", ".h5"}
_HEADER_LIMIT_BYTES = 100_000_000  # the safetensors format's own bound


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object, or raise `PipelineError` naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        message = f"{path} is missing; {path.parent} is not a complete diffusers model folder."
        raise PipelineError(message) from error
    except (OSError, ValueError) as error:
        message = f"{path} cannot be read as JSON: {error}."
        raise PipelineError(message) from error
    if not isinstance(content, dict):
        message = f"{path} must hold a JSON object, not {type(content).__name__}."
        raise PipelineError(message)
    return content


def weight_bytes(component: Path, dtype_bytes: int) -> int:
    """Return what a component's weights take in numbers of `dtype_bytes`; 0 if it has none.

    Raises `PipelineError` if files are missing, cut short or of another format.
    """
    return sum(_numbers_in(path) for path in _weight_files(component)) * dtype_bytes


def _weight_files(component: Path) -> list[Path]:
    """Return the files that diffusers and transformers load: no variants, no doubles.

    A folder of weights in another format than safetensors is refused; one without any weights
    (tokenizers, schedulers: what has no config.json) has none.
    """
    if not component.is_dir():
        message = f"{component} is missing; {component.parent} is not a complete model folder."
        raise PipelineError(message)
    for name in _WEIGHT_NAMES:
        index = component / f"{name}.safetensors.index.json"
        if index.exists():
            parts = read_json(index).get("weight_map")
            shards = sorted(set(parts.values())) if isinstance(parts, dict) else []
            return [component / shard for shard in shards]
        if (component / f"{name}.safetensors").exists():
            return [component / f"{name}.safetensors"]
    other = sorted(path.name for path in component.glob("*") if path.suffix in _WEIGHT_SUFFIXES)
    if other:
        message = (
            f"{component} holds no {' or '.join(_WEIGHT_NAMES)}.safetensors, only "
            f"{', '.join(other[:3])}; save the model again with save_pretrained."
        )
        raise PipelineError(message)
    if (component / "config.json").exists():
        message = f"{component} has a config.json and no weights; copy its .safetensors files, too."
        raise PipelineError(message)
    return []


def _numbers_in(path: Path) -> int:
    """Count the numbers in a safetensors file from its header (little-endian length, JSON)."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, _HEADER_LIMIT_BYTES)))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        whole_bytes = 8 + length + max((entry["data_offsets"][1] for entry in tensors), default=0)
        numbers: int = sum(prod(entry["shape"]) for entry in tensors)
        found_bytes = path.stat().st_size
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        message = f"{path} is not a readable safetensors file: {error}."
        raise PipelineError(message) from error
    if found_bytes != whole_bytes:
        message = f"{path} has {found_bytes} bytes and should have {whole_bytes}; copy it again."
        raise PipelineError(message)
    return numbers
