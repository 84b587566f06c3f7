"""Tensors as safetensors files in the hand-off folder: `TensorTransport` between processes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.errors import StageFailedError
from engine.handoff import handoff_path
from engine.stages.base import Snapshot
from engine.types import HandoffRef, NodeId, TaskId

_OUTLINE = "outline"


class FileTransport:
    """Writes and reads hand-offs of one worker's device."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Know where hand-offs lie and where tensors should go."""
        self._folder, self._device = folder, device
        self._latest: tuple[str, dict[str, Tensor]] | None = None

    def put(self, node: NodeId, task: TaskId, tensors: Mapping[str, Tensor]) -> HandoffRef:
        """Write the tensors of a finished node; the next `get` here has them without reading."""
        path = handoff_path(self._folder, task)
        laid_out = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(laid_out, path)
        self._latest = (str(path), laid_out)
        return HandoffRef(node, str(path), path.stat().st_size)

    def put_snapshot(self, node: NodeId, task: TaskId, snapshot: Snapshot) -> HandoffRef:
        """Write where a paused diffuse stands; its outline goes into the file's header."""
        path = handoff_path(self._folder, task)
        save_file(dict(snapshot.tensors), path, metadata={_OUTLINE: snapshot.outline})
        return HandoffRef(node, str(path), path.stat().st_size)

    def get_snapshot(self, ref: HandoffRef) -> Snapshot:
        """Read where a paused diffuse stands; raises `StageFailedError` if it is gone."""
        tensors = self.get(ref)
        with safe_open(ref.path, framework="pt") as file:
            return Snapshot(tensors, file.metadata()[_OUTLINE])

    def get(self, ref: HandoffRef) -> dict[str, Tensor]:
        """Read a hand-off onto this device; raises `StageFailedError` if it is gone."""
        latest, self._latest = self._latest, None
        if latest is not None and latest[0] == ref.path:
            return latest[1]
        try:
            tensors: dict[str, Tensor] = load_file(ref.path, device=str(self._device))
        except FileNotFoundError as error:
            message = f"Hand-off of node {ref.node} is gone: {ref.path}."
            raise StageFailedError(message, retryable=False) from error
        return tensors
