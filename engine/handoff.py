"""The folder in shared memory where stages leave tensors for each other, and who may delete them.

Torch-free: the controller accounts and deletes; workers write and read through
`engine.stages.transport`. The folder lies in a private one that its owner keeps locked, so that a
later start can sweep what a killed controller left behind.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from engine.errors import LedgerError
from engine.handoff_buffer import HandoffBuffer, handoff_name
from engine.types import HandoffRef, NodeId, TaskId

WINDOW_BYTES = 128 << 20  # of each GPU, for hand-offs that others of the node read there
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a memory file system, not a shared temp folder
_LEAST_FREE_BYTES = 256 << 20  # containers often get 64 MiB, too little for latents of videos
_PREFIX = "trident-engine-"
_LOCK = "lock"


def handoff_path(folder: Path, task: TaskId) -> Path:
    """Return the file that `task` leaves its output in, unless it spills; safe for any id."""
    return folder / handoff_name(task)


def preview_of(task: TaskId, index: int) -> TaskId:
    """Return the name under which a diffuse leaves the latent of its preview number `index`."""
    return TaskId(f"{task}/preview-{index}")


def saved_of(task: TaskId, step: int) -> TaskId:
    """Return the name under which a diffuse that goes on saves where it stands after `step`."""
    return TaskId(f"{task}/saved-{step}")


class HandoffStore:
    """Accounts for every hand-off file of one controller process.

    Attributes:
        folder: where workers write; readable by this user only.
    """

    def __init__(
        self, folder: Path, budget_bytes: int | None = None, spill: Path | None = None
    ) -> None:
        """Make the folder; beyond `budget_bytes` workers write to the folder `spill`."""
        self.folder = folder
        self.folder.mkdir(mode=0o700)
        if budget_bytes is not None and spill is not None:
            HandoffBuffer.set_bound(folder, budget_bytes, spill)
        self._buffer = HandoffBuffer(folder)
        self._alive: dict[str, int] = {}

    @property
    def used_bytes(self) -> int:
        """Bytes of all hand-offs that are alive."""
        return sum(self._alive.values())

    def adopt(self, ref: HandoffRef) -> None:
        """Account for a file that a worker has finished writing."""
        self._alive[ref.path] = ref.size_bytes

    def restore(self, task: TaskId, node: NodeId, content: bytes) -> HandoffRef:
        """Write a hand-off that was kept elsewhere, and account for it; in any thread."""
        with self._buffer.place(task, len(content)) as path:
            try:
                path.write_bytes(content)
            except OSError:  # there is no room
                path.unlink(missing_ok=True)
                raise
        ref = HandoffRef(node, str(path), len(content))
        self.adopt(ref)
        return ref

    def holds(self, ref: HandoffRef) -> bool:
        """Whether a hand-off is alive."""
        return ref.path in self._alive

    def release(self, ref: HandoffRef) -> None:
        """Delete a hand-off; raises `LedgerError` if it is not alive."""
        if self._alive.pop(ref.path, None) is None:
            message = f"Hand-off {ref.path} of node {ref.node} was released twice or never made."
            raise LedgerError(message)
        Path(ref.path).unlink(missing_ok=True)

    def discard(self, task: TaskId) -> None:
        """Delete what a task wrote and nobody accounts for; harmless if it wrote nothing."""
        for path in self._buffer.discard(task):
            if str(path) not in self._alive:
                path.unlink(missing_ok=True)

    def check_integrity(self) -> None:
        """Raise `LedgerError` if a hand-off that is alive has no file of its size."""
        for path, size_bytes in self._alive.items():
            file = Path(path)
            if not file.exists() or file.stat().st_size != size_bytes:
                message = f"Hand-off {path} should have {size_bytes} bytes and has not."
                raise LedgerError(message)

    def close(self) -> None:
        """Delete the folder; idempotent."""
        self._alive.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


class PrivateFolder:
    """A folder for this process alone, by default in shared memory.

    It is locked for as long as the process lives, however that ends; what is not locked was left
    behind and is swept by the next one. Process ids would not do: containers share memory folders
    but not ids.
    """

    def __init__(self, root: Path | None = None) -> None:
        """Sweep what others left under `root` and make the folder."""
        root = root or _roomiest_root()
        sweep_stale(root)
        while (made := _make_locked(root)) is None:
            pass
        self.path, self._lock = made

    def close(self) -> None:
        """Delete the folder; idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _make_locked(root: Path) -> tuple[Path, int | None] | None:
    """Make a folder and lock it; None if another process has swept it before that."""
    path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
    with suppress(FileNotFoundError):
        lock = _lock(path)
        if lock is None:
            return None
        if (path / _LOCK).exists():
            return path, lock
        os.close(lock)
    return None


def _lock(folder: Path) -> int | None:
    """Lock a folder and return the file descriptor that holds the lock; None if it is taken."""
    descriptor = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _roomiest_root() -> Path:
    usable = os.access(_SHARED_MEMORY, os.W_OK)
    if usable and shutil.disk_usage(_SHARED_MEMORY).free >= _LEAST_FREE_BYTES:
        return _SHARED_MEMORY
    return Path(tempfile.gettempdir())


def sweep_stale(root: Path) -> None:
    """Delete private folders under `root` that no living process holds."""
    for folder in root.glob(f"{_PREFIX}*"):
        try:
            descriptor = _lock(folder)
        except OSError:
            continue  # another user's, or swept by another process this moment
        if descriptor is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)
