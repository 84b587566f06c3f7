"""A stage's weights in host memory that all workers of a node map, and their way to a device.

One file of flat segments and beside it their layout. It is written once, by the first worker that
loads the stage, and read in chunks, so that a copy to a device can be stopped between two.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from engine.host_store import LAYOUT_SUFFIX, delete_copy
from engine.stages.flat import Layout, layout_of, pack

CHUNK_BYTES = 64 << 20


class LoadStoppedError(Exception):
    """A copy to a device was told to stop; what had arrived is freed."""


class HostSegments:
    """A mapped host copy: its flat segments with their layout."""

    def __init__(self, layout: Layout, path: Path) -> None:
        """Map a file of the layout's size; writes go through."""
        self.layout = layout
        size = layout.size_bytes
        self.whole = torch.empty(0, dtype=torch.uint8)
        if size:
            self.whole = torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)
        self.segments = self.whole.split(layout.segments)


def write_copy(
    path: Path, modules: Mapping[str, nn.Module], limit_bytes: int, *, for_cpu: bool = False
) -> HostSegments | None:
    """Move the modules' tensors into a new host copy and let the modules use it.

    Returns None, and leaves the modules alone, if it would take more than `limit_bytes` or the
    memory file system has no room.
    """
    layout = layout_of(modules, for_cpu=for_cpu)
    if layout.size_bytes > limit_bytes or not _allocate(path, layout.size_bytes):
        return None
    copy = HostSegments(layout, path)
    pack(modules, layout, copy.segments)
    path.with_name(path.name + LAYOUT_SUFFIX).write_bytes(msgspec.msgpack.encode(layout))
    return copy


def read_copy(path: Path) -> HostSegments:
    """Map a complete host copy."""
    described = path.with_name(path.name + LAYOUT_SUFFIX).read_bytes()
    return HostSegments(msgspec.msgpack.decode(described, type=Layout), path)


def _allocate(path: Path, size_bytes: int) -> bool:
    """Take the memory now: a write to a sparse file that finds none would kill the process."""
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, size_bytes))
    except OSError:
        delete_copy(path)
        return False
    return True


class PinnedMaps:
    """Host copies that this process has mapped and page-locked, so that CUDA reads them directly.

    A mapping lasts until the node's controller deletes the copy: locking pages takes as long as
    copying them. CPU devices map a copy for each load, as nothing is gained by keeping it.
    """

    def __init__(self, device: torch.device) -> None:
        """Begin with no mapping."""
        self._keeps = device.type == "cuda"
        self._maps: dict[str, HostSegments] = {}

    def add(self, path: str, copy: HostSegments) -> HostSegments:
        """Lock a copy's pages; where the system allows no more, it is read all the same."""
        if self._keeps and path not in self._maps:
            torch.cuda.cudart().cudaHostRegister(copy.whole.data_ptr(), copy.whole.nbytes, 0)
            self._maps[path] = copy
        return copy

    def open(self, path: str) -> HostSegments:
        """Return a copy, mapped before or now."""
        return self._maps.get(path) or self.add(path, read_copy(Path(path)))

    def forget(self, path: str) -> None:
        """Unlock and unmap a copy that was deleted; harmless if it was never mapped here."""
        if (copy := self._maps.pop(path, None)) is not None:
            torch.cuda.cudart().cudaHostUnregister(copy.whole.data_ptr())


def copy_to_device(
    segments: Sequence[Tensor],
    device: torch.device,
    stopped: Callable[[], bool],
    chunk_bytes: int = CHUNK_BYTES,
) -> list[Tensor]:
    """Return a device copy of flat segments, made chunk by chunk beside whatever else runs.

    On CUDA it goes over a stream of its own, at most two chunks ahead of the link.

    Raises:
        LoadStoppedError: `stopped()` became true between two chunks.
    """
    copies: list[Tensor] = []
    with _own_stream(device) as wait:
        for segment in segments:
            copy = torch.empty(segment.nbytes, dtype=torch.uint8, device=device)
            copies.append(copy)
            for begin in range(0, segment.nbytes, chunk_bytes):
                if stopped():
                    raise LoadStoppedError
                size = min(chunk_bytes, segment.nbytes - begin)
                source = segment.narrow(0, begin, size)
                copy.narrow(0, begin, size).copy_(source, non_blocking=True)
                wait()
    return copies


@contextmanager
def _own_stream(device: torch.device) -> Iterator[Callable[[], None]]:
    """Run copies on a side stream; yields what bounds how far they run ahead."""
    if device.type != "cuda":
        yield lambda: None
        return
    stream = torch.cuda.Stream(device)
    events: list[torch.cuda.Event] = []

    def wait() -> None:
        events.append(stream.record_event())
        if len(events) > 1:
            events.pop(0).synchronize()

    with torch.cuda.stream(stream):
        try:
            yield wait
        finally:
            stream.synchronize()  # nobody uses, and nobody frees, what is still on its way
