"""The folder in shared memory where stages leave tensors for each other, and who may delete them.

Torch-free: the controller accounts and deletes; workers write and read through
`engine.stages.transport`. The folder lies in a private one that carries its owner's process id, so
that a later start can sweep what a killed controller left behind.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from engine.errors import LedgerError
from engine.types import HandoffRef, TaskId

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a memory file system, not a shared temp folder
_LEAST_FREE_BYTES = 256 << 20  # containers often get 64 MiB, too little for latents of videos
_PREFIX = "trident-"
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


def handoff_path(folder: Path, task: TaskId) -> Path:
    """Return the file that `task` leaves its output in."""
    return folder / f"{_UNSAFE.sub('_', task)}.safetensors"


class HandoffStore:
    """Accounts for every hand-off file of one controller process.

    Attributes:
        folder: where workers write; readable by this user only.
    """

    def __init__(self, folder: Path) -> None:
        """Make the folder."""
        self.folder = folder
        self.folder.mkdir(mode=0o700)
        self._alive: dict[str, int] = {}

    @property
    def used_bytes(self) -> int:
        """Bytes of all hand-offs that are alive."""
        return sum(self._alive.values())

    def adopt(self, ref: HandoffRef) -> None:
        """Account for a file that a worker has finished writing."""
        self._alive[ref.path] = ref.size_bytes

    def release(self, ref: HandoffRef) -> None:
        """Delete a hand-off; raises `LedgerError` if it is not alive."""
        if self._alive.pop(ref.path, None) is None:
            message = f"Hand-off {ref.path} of node {ref.node} was released twice or never made."
            raise LedgerError(message)
        Path(ref.path).unlink(missing_ok=True)

    def discard(self, task: TaskId) -> None:
        """Delete what a task wrote before it failed; harmless if it wrote nothing."""
        handoff_path(self.folder, task).unlink(missing_ok=True)

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


def private_folder(root: Path | None = None) -> Path:
    """Make a folder for this process alone under `root`, by default in shared memory."""
    root = root or _roomiest_root()
    sweep_stale(root)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=root))


def _roomiest_root() -> Path:
    usable = os.access(_SHARED_MEMORY, os.W_OK)
    if usable and shutil.disk_usage(_SHARED_MEMORY).free >= _LEAST_FREE_BYTES:
        return _SHARED_MEMORY
    return Path(tempfile.gettempdir())


def sweep_stale(root: Path) -> None:
    """Delete private folders under `root` whose process is gone."""
    for folder in root.glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX).split("-", 1)[0]
        if pid.isdecimal() and not _is_running(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
