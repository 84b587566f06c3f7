"""Hand-offs that also lie on the device that made them, where other devices of the node read them.

The file of a hand-off is its truth, and its lease: a device has one window, memory that others open
once (CUDA IPC), and what lies there is kept for as long as its file exists, which the controller
deletes when the last consumer is done. What finds no room in the window is read from its file, and
so is what lay in the window of a process that died: nothing is lost with it. Knows no CUDA; how
memory is lent and opened is `engine.stages.peers`, and in tests a shared file.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Collection, Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog
import torch
from torch import Tensor

from engine.stages.flat import ALIGNMENT_BYTES

SPOT = "window"  # in the header of a hand-off's file
Lend = Callable[[Tensor], bytes]
Open = Callable[[bytes], Tensor]
log = structlog.get_logger(__name__)


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """One tensor, `offset` bytes into a window."""

    offset: int
    dtype: str
    shape: tuple[int, ...]

    def of(self, memory: Tensor) -> Tensor:
        """Return the tensor as it lies in the window's memory."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        flat = memory.narrow(0, self.offset, prod(self.shape) * dtype.itemsize)
        return flat.view(dtype).view(self.shape)


class Spot(msgspec.Struct, frozen=True):
    """Where the tensors of the hand-off `file` lie; a copy of that file has another name."""

    file: str
    window: str
    pieces: dict[str, Piece]


class _Span(NamedTuple):
    begin: int
    end: int


class Window:
    """One device's memory for hand-offs; describes itself in a file that is locked while it is there.

    Args:
        path: of the description.
        memory: flat bytes of the device, booked by whoever has made this.
        lend: returns what another process opens the memory by.
    """

    def __init__(self, path: Path, memory: Tensor, lend: Lend) -> None:
        """Let others open it from now on; raises `RuntimeError` if it cannot be lent."""
        self.path, self.memory = path, memory
        self._spans: dict[Path, _Span] = {}
        described = lend(memory)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        self._lock = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        os.write(self._lock, described)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def keep(self, file: Path, tensors: Mapping[str, Tensor]) -> Spot | None:
        """Copy the tensors of a hand-off whose file is written next; None if there is no room."""
        pieces: dict[str, Piece] = {}
        size = 0
        for name, tensor in tensors.items():
            dtype = str(tensor.dtype).removeprefix("torch.")
            pieces[name] = Piece(size, dtype, tuple(tensor.shape))
            size += -(-tensor.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        begin = self._room(size)
        if begin is None:
            return None
        self._spans[file] = _Span(begin, begin + size)
        placed = {
            name: msgspec.structs.replace(piece, offset=begin + piece.offset)
            for name, piece in pieces.items()
        }
        for name, piece in placed.items():
            piece.of(self.memory).copy_(tensors[name])
        if self.memory.is_cuda:
            torch.cuda.current_stream().synchronize()  # others may read as soon as they know
        return Spot(file.name, str(self.path), placed)

    def _room(self, size: int) -> int | None:
        """Return where `size` bytes are free; what has no file any more is nobody's."""
        self._spans = {file: span for file, span in self._spans.items() if file.exists()}
        begin = 0
        for span in sorted(self._spans.values()):
            if begin + size <= span.begin:
                break
            begin = span.end
        return begin if begin + size <= self.memory.nbytes else None

    def close(self) -> None:
        """Let nobody read from it any more, as the end of its process does."""
        os.close(self._lock)

    def check_integrity(self) -> None:
        """Raise if two hand-offs share memory, or one lies outside."""
        end = 0
        for span in sorted(self._spans.values()):
            assert end <= span.begin <= span.end <= self.memory.nbytes, self._spans
            end = span.end


class Windows:
    """What one process sees of its node's windows; `own` is its own, if it has one."""

    def __init__(self, device: torch.device, open_window: Open, own: Window | None = None) -> None:
        """Open nothing yet."""
        self._device, self._open, self._own = device, open_window, own
        self._opened: dict[str, Tensor] = {} if own is None else {str(own.path): own.memory}
        self._unreachable: set[str] = set()

    def keep(self, file: Path, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """Let a hand-off also lie in the own window; return what its file's header says of that."""
        spot = None if self._own is None else self._own.keep(file, tensors)
        return {} if spot is None else {SPOT: msgspec.json.encode(spot).decode()}

    def read(
        self, file: Path, header: Mapping[str, str], fields: Collection[str] | None
    ) -> dict[str, Tensor] | None:
        """Copy a hand-off from a window to this device; None if its file must be read."""
        if SPOT not in header:
            return None
        spot = msgspec.json.decode(header[SPOT], type=Spot)
        self._close_dead()
        memory = self._memory(spot.window) if spot.file == file.name else None
        if memory is None:
            return None
        names = spot.pieces if fields is None else fields
        return {
            name: spot.pieces[name].of(memory).to(self._device, copy=True, non_blocking=True)
            for name in names
        }

    def _close_dead(self) -> None:
        """Let go of what processes that died have lent: their device has it back only then."""
        for window in [window for window in self._opened if not _is_held(Path(window))]:
            del self._opened[window]

    def _memory(self, window: str) -> Tensor | None:
        """Return a window's memory if the process that it belongs to lives and can be reached."""
        if window in self._unreachable or not _is_held(Path(window)):
            return None
        if window not in self._opened:
            try:
                self._opened[window] = self._open(Path(window).read_bytes())
            except RuntimeError as error:
                log.warning("window_not_reached", window=window, detail=str(error))
                self._unreachable.add(window)
                return None
        return self._opened[window]


def _is_held(path: Path) -> bool:
    """Whether a process holds the window that `path` describes: its lock goes when it dies."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
