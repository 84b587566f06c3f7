"""How much memory a worker process takes while it works, as the system counts it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

_KIB: Final = 1024


class HighWater:
    """The most resident memory that a process of this machine has had since now.

    Linux tells and resets it; elsewhere the answer is 0. A process that keeps freed memory for
    itself hides what it uses again, so the largest of several runs is the figure.
    """

    def __init__(self, pid: int | None) -> None:
        """Begin at what it has now."""
        self._folder = None if pid is None else Path(f"/proc/{pid}")
        self._base_bytes = 0
        if self._folder is not None:
            with suppress(OSError):
                (self._folder / "clear_refs").write_text("5")
                self._base_bytes = self._read("VmRSS:")

    def bytes_since(self) -> int:
        """Return by how much it has grown at most."""
        if self._folder is None or not self._base_bytes:
            return 0
        with suppress(OSError):
            return max(0, self._read("VmHWM:") - self._base_bytes)
        return 0

    def _read(self, field: str) -> int:
        assert self._folder is not None  # asked only where there is a process
        for line in (self._folder / "status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * _KIB
        return 0
