"""A trajectory between two steps, as tensors and JSON: what a paused diffuse leaves behind.

All that a step reads and changes is kept: the latent, every attribute of the sampler (multistep
solvers remember earlier outputs, all of them an index) and the random generator. What cannot be
told in tensors and JSON cannot be saved; nothing is ever pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.stages.base import Snapshot, Trajectory

_CONFIG = "_internal_dict"  # a sampler's construction: the resuming process has it from the folder


class UnsavableStateError(Exception):
    """A sampler holds something that is neither a number, text, tensor nor a collection of them."""


def save(trajectory: Trajectory) -> Snapshot:
    """Return where a trajectory stands; raises `UnsavableStateError` if that cannot be told."""
    sampler = {name: v for name, v in vars(trajectory.scheduler).items() if name != _CONFIG}
    generator = trajectory.generator
    state = {
        "step": trajectory.step,
        "latents": trajectory.latents,
        "sampler": sampler,
        "generator": None if generator is None else generator.get_state(),
    }
    tensors: dict[str, Tensor] = {}
    outline = _freeze(state, "state", tensors)
    return Snapshot(tensors, json.dumps(outline))


def restore(trajectory: Trajectory, snapshot: Snapshot) -> None:
    """Take a trajectory that has just begun to where a snapshot of the same request stands."""
    state = _thaw(json.loads(snapshot.outline), snapshot.tensors)
    trajectory.step, trajectory.latents = state["step"], state["latents"]
    vars(trajectory.scheduler).update(state["sampler"])
    if trajectory.generator is not None:
        trajectory.generator.set_state(state["generator"])


def _freeze(value: object, name: str, tensors: dict[str, Tensor]) -> object:
    """Return JSON for a value whose tensors go to `tensors` under names that begin with `name`."""
    match value:
        case Tensor():
            return _pack(value, name, tensors)
        case np.ndarray() | np.generic():  # before float: numpy's float64 is one
            return _pack_numpy(value, name, tensors)
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            items = [_freeze(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
            return items if isinstance(value, list) else {"tuple": items}
        case dict() if all(isinstance(key, str) for key in value):
            return {"dict": {k: _freeze(v, f"{name}.{k}", tensors) for k, v in value.items()}}
    message = f"{name} is a {type(value).__name__}."
    raise UnsavableStateError(message)


def _pack(tensor: Tensor, name: str, tensors: dict[str, Tensor]) -> object:
    """Keep a tensor in the order it lies in memory, since kernels may round by layout."""
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda axis: -strides[axis])
    tensors[name] = tensor.detach().permute(order).clone(memory_format=torch.contiguous_format)
    return {"tensor": name, "order": order, "on_host": tensor.device.type == "cpu"}


def _pack_numpy(value: object, name: str, tensors: dict[str, Tensor]) -> object:
    try:
        tensors[name] = torch.from_numpy(np.array(value))
    except TypeError as error:  # texts, objects
        message = f"{name} is an array: {error}"
        raise UnsavableStateError(message) from error
    return {"numpy": name, "is_scalar": isinstance(value, np.generic)}


def _thaw(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what `_freeze` was given; a tensor of the device is one of this device now."""
    match value:
        case {"tensor": name, "order": order, "on_host": on_host}:
            tensor = tensors[name].permute([order.index(axis) for axis in range(len(order))])
            return tensor.cpu() if on_host else tensor
        case {"numpy": name, "is_scalar": is_scalar}:
            array = tensors[name].cpu().numpy()
            return array[()] if is_scalar else array
        case {"tuple": items}:
            return tuple(_thaw(item, tensors) for item in items)
        case {"dict": items}:
            return {key: _thaw(item, tensors) for key, item in items.items()}
        case list():
            return [_thaw(item, tensors) for item in value]
        case _:
            return value
