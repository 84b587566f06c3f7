"""Where a hand-off is written: shared memory up to a bound, beyond it a folder on disk.

All writers of a node share the bound without talking to each other: a lock on a file, and the sizes
of what lies in the folder. So nothing has to be repaired after a writer was killed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from engine.types import TaskId

_RESERVED = ".reserved"


class _Bound(msgspec.Struct, frozen=True):
    """What the controller tells all writers, in a file beside the folder."""

    budget_bytes: int
    spill: str


def handoff_name(task: TaskId) -> str:
    """Return the name of the file that `task` leaves its output in; safe for any id."""
    return f"{hashlib.sha256(task.encode()).hexdigest()[:32]}.safetensors"


class HandoffBuffer:
    """The hand-off folder of a node as its writers see it.

    Attributes:
        folder: in shared memory.
    """

    def __init__(self, folder: Path) -> None:
        """Read the bound that the controller has set; without one there is none."""
        self.folder = folder
        self._lock, described = folder.with_name(f"{folder.name}.lock"), _bound_file(folder)
        self._bound: _Bound | None = None
        if described.exists():
            self._bound = msgspec.json.decode(described.read_bytes(), type=_Bound)

    @staticmethod
    def set_bound(folder: Path, budget_bytes: int, spill: Path) -> None:
        """Let what exceeds `budget_bytes` go to `spill`; to be called before writers start."""
        bound = _Bound(budget_bytes, str(spill))
        _bound_file(folder).write_bytes(msgspec.json.encode(bound))

    @contextmanager
    def place(self, task: TaskId, size_bytes: int) -> Iterator[Path]:
        """Give a writer the path for a hand-off of at most `size_bytes`."""
        path, reserved = self._reserve(handoff_name(task), size_bytes)
        try:
            yield path
        finally:
            reserved.unlink(missing_ok=True)

    def _reserve(self, name: str, size_bytes: int) -> tuple[Path, Path]:
        """Choose a folder; what is to come counts from now on, as a file without blocks."""
        path, reserved = self.folder / name, self.folder / f"{name}{_RESERVED}"
        if self._bound is None:
            return path, reserved
        with self._lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _bytes_in(self.folder) + size_bytes > self._bound.budget_bytes:
                return Path(self._bound.spill) / name, reserved
            with reserved.open("wb") as file:
                file.truncate(size_bytes)
        return path, reserved

    def find(self, path: str) -> Path:
        """Return where a hand-off lies that was expected at `path`."""
        expected = Path(path)
        if self._bound is None or expected.exists():
            return expected
        spilled = Path(self._bound.spill) / expected.name
        return spilled if spilled.exists() else expected

    def discard(self, task: TaskId) -> tuple[Path, ...]:
        """Return every file that a writer of `task` may have left behind."""
        name = handoff_name(task)
        spilled = () if self._bound is None else (Path(self._bound.spill) / name,)
        return (self.folder / f"{name}{_RESERVED}", self.folder / name, *spilled)


def _bytes_in(folder: Path) -> int:
    """Sum of what lies there; readers take hand-offs away meanwhile, without the writers' lock."""
    used = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                used += entry.stat().st_size
    return used


def _bound_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.bound")
