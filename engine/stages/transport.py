"""Tensors as safetensors files: `TensorTransport` between processes and between nodes.

In one process the tensors themselves are handed on, in one node a file in shared memory (on disk
beyond the buffer's bound), between nodes the bytes of such a file over TCP. Between GPUs of a node
tensors also lie in a window of the one that made them (`windows`), and are copied from there.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load, save_file
from torch import Tensor

from engine.errors import StageFailedError
from engine.handoff_buffer import HandoffBuffer, handoff_name
from engine.handoff_client import HandoffClient
from engine.stages.base import Snapshot
from engine.stages.flat import CACHE_LINE_BYTES
from engine.stages.windows import Windows
from engine.types import HandoffRef, NodeId, TaskId

_OUTLINE = "outline"


class FileTransport:
    """Writes and reads hand-offs of one worker's device.

    Args:
        folder: the node's hand-off folder.
        client: fetches what lies on other nodes; None where there are none.
        windows: of this device and its neighbours; None where memory is as near (CPU devices).
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        client: HandoffClient | None = None,
        windows: Windows | None = None,
    ) -> None:
        """Know where hand-offs lie and where tensors should go."""
        self._buffer, self._device, self._client = HandoffBuffer(folder), device, client
        self._windows = windows
        self._latest: tuple[str, dict[str, Tensor]] | None = None

    def put(
        self, node: NodeId, task: TaskId, tensors: Mapping[str, Tensor], *, near: bool = False
    ) -> HandoffRef:
        """Write the tensors of a finished node; the next `get` here has them without reading.

        With `near` they also lie in the device's window. That is for what is read soon and once:
        embeddings, which are kept across requests, would fill it.
        """
        laid_out = {name: tensor.contiguous() for name, tensor in tensors.items()}
        ref = self._write(node, task, laid_out, windows=self._windows if near else None)
        self._latest = (handoff_name(task), laid_out)
        return ref

    def put_snapshot(self, node: NodeId, task: TaskId, snapshot: Snapshot) -> HandoffRef:
        """Write where a paused diffuse stands; its outline goes into the file's header."""
        return self._write(node, task, snapshot.tensors, {_OUTLINE: snapshot.outline})

    def _write(
        self,
        node: NodeId,
        task: TaskId,
        tensors: Mapping[str, Tensor],
        metadata: dict[str, str] | None = None,
        windows: Windows | None = None,
    ) -> HandoffRef:
        size = sum(tensor.nbytes for tensor in tensors.values()) + _header_bytes(tensors, metadata)
        with self._buffer.place(task, size) as path:
            if windows is not None:
                metadata = windows.keep(path, tensors)
            save_file(dict(tensors), path, metadata=metadata)
            return HandoffRef(node, str(path), path.stat().st_size)

    def get_snapshot(self, ref: HandoffRef) -> Snapshot:
        """Read where a paused diffuse stands; raises `StageFailedError` if it is gone."""
        tensors = self.get(ref)
        with safe_open(self._buffer.find(ref.path), framework="pt") as file:
            return Snapshot(tensors, file.metadata()[_OUTLINE])

    def get(self, ref: HandoffRef, fields: Collection[str] | None = None) -> dict[str, Tensor]:
        """Read a hand-off, or some of its tensors, onto this device.

        Raises:
            StageFailedError: it is gone, or the node that holds it does not answer.
        """
        latest, self._latest = self._latest, None
        if ref.host:
            return self._fetch(ref, fields)
        if latest is not None and latest[0] == Path(ref.path).name:
            return _chosen(latest[1], fields)
        return self._read(ref, fields)

    def _fetch(self, ref: HandoffRef, fields: Collection[str] | None) -> dict[str, Tensor]:
        if self._client is None:
            message = (
                f"Hand-off of node {ref.node} lies on {ref.host}, and this node has no client."
            )
            raise StageFailedError(message, retryable=False)
        tensors: dict[str, Tensor] = load(bytes(self._client.fetch(ref, fields)))
        return {name: _aligned(tensor.to(self._device)) for name, tensor in tensors.items()}

    def _read(self, ref: HandoffRef, fields: Collection[str] | None) -> dict[str, Tensor]:
        path = self._buffer.find(ref.path)
        try:
            with safe_open(path, framework="pt", device=str(self._device)) as file:
                if self._windows is not None:
                    near = self._windows.read(path, file.metadata() or {}, fields)
                    if near is not None:
                        return near
                names = file.keys() if fields is None else fields
                tensors = {name: _aligned(file.get_tensor(name)) for name in names}
        except FileNotFoundError as error:
            message = f"Hand-off of node {ref.node} is gone: {ref.path}."
            raise StageFailedError(message, retryable=False) from error
        return tensors


def _aligned(tensor: Tensor) -> Tensor:
    """Return a tensor where kernels expect one, so that they round as if it had never been a file."""
    return tensor.clone() if tensor.data_ptr() % CACHE_LINE_BYTES else tensor


def _chosen(tensors: dict[str, Tensor], fields: Collection[str] | None) -> dict[str, Tensor]:
    return tensors if fields is None else {name: tensors[name] for name in fields}


def _header_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None) -> int:
    """Return at least what the header of a safetensors file takes."""
    texts = sum(len(json.dumps(text)) for text in (metadata or {}).values())
    return 2048 + texts + sum(512 + 2 * len(name) for name in tensors)  # a window's spot as well
