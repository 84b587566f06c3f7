"""A diffusers folder before any weights are read: its pipeline, its components, their configurations.

Whatever a worker would only find out when it loads a stage is found out here: a component that is
missing, a denoiser of another pipeline, a configuration that is no JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import PipelineError
from engine.families import FAMILIES, Family
from engine.weights import read_json

_ABSENT = (None, [None, None])
_DENOISERS = ("transformer", "unet")


class ModelFolder(msgspec.Struct, frozen=True, kw_only=True):
    """What a folder was saved with; `configs` are by component, of those that have one."""

    path: Path
    family: Family
    components: tuple[str, ...]
    configs: Mapping[str, Mapping[str, Any]]


def open_folder(path: Path) -> ModelFolder:
    """Read what `save_pretrained` wrote, except weights.

    Raises:
        PipelineError: a file is missing or malformed, or the pipeline is not served as it was saved.
    """
    index = read_json(path / "model_index.json")
    family = _family_of(path, index)
    components = _components(path, index, family)
    configs = {name: _config(path / name) for name in components}
    return ModelFolder(path=path, family=family, components=components, configs=configs)


def _family_of(path: Path, index: Mapping[str, Any]) -> Family:
    name = index.get("_class_name")
    family = FAMILIES.get(str(name))
    if family is None:
        message = (
            f"{path / 'model_index.json'} asks for pipeline class {name!r}, which is not served; "
            f"known classes: {', '.join(sorted(FAMILIES))}."
        )
        raise PipelineError(message)
    return family


def _components(path: Path, index: Mapping[str, Any], family: Family) -> tuple[str, ...]:
    """Return the family's components that a pipeline was saved with."""
    wanted = [name for names in family.components.values() for name in names]
    present = tuple(name for name in wanted if index.get(name) not in _ABSENT)
    missing = [name for name in wanted if name not in present and name not in family.optional]
    if missing:
        message = (
            f"{path / 'model_index.json'} names no {', '.join(missing)}, without which a "
            f"{family.pipeline_class} cannot run; is _class_name right, and was all of it saved?"
        )
        raise PipelineError(message)
    for name in present:
        _expect_class(path, name, index[name], family)
    return present


def _expect_class(path: Path, name: str, value: object, family: Family) -> None:
    try:
        _library, found = msgspec.convert(value, tuple[str, str])
    except msgspec.ValidationError as error:
        message = f"{path / 'model_index.json'}: {name} must be [library, class], not {value!r}."
        raise PipelineError(message) from error
    if name in _DENOISERS and found not in family.denoisers:
        message = (
            f"{path / 'model_index.json'} has a {found} as {name}, but a {family.pipeline_class} "
            f"needs a {' or '.join(family.denoisers)}; is _class_name the right one?"
        )
        raise PipelineError(message)


def _config(component: Path) -> Mapping[str, Any]:
    """Return a component's configuration; tokenizers may have none."""
    if component.name.startswith("tokenizer"):
        path = component / "tokenizer_config.json"
        return read_json(path) if path.exists() else {}
    is_scheduler = component.name == "scheduler"
    return read_json(component / ("scheduler_config.json" if is_scheduler else "config.json"))
