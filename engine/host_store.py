"""Host copies of stages' weights: one per node, in shared memory, mapped by every worker.

A ledger with a budget of its own, kept by the node's controller: it says where a copy lies, lets
one worker fill it while the others wait, and deletes the least recently used ones. It moves no
bytes and knows no torch; workers fill and read copies (`engine.stages.host_copy`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from engine.errors import LedgerError
from engine.messages import HostCopy
from engine.types import StageKey

# Buffers that no checkpoint holds and alignment make a copy larger than its weights.
_SLACK_SHARE, _SLACK_BYTES = 64, 1 << 20
LAYOUT_SUFFIX = ".layout"
log = structlog.get_logger(__name__)


def booked_bytes(weight_bytes: int) -> int:
    """Return what is booked for the copy of a stage before it is filled and its size is known."""
    return weight_bytes + weight_bytes // _SLACK_SHARE + _SLACK_BYTES


class _Entry:
    """One copy: what it is booked with, who reads or fills it, and whether it is complete."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path, self.size_bytes = path, size_bytes
        self.users = 0
        self.filled = False


class HostStore:
    """The weights that one node keeps in host memory.

    Args:
        folder: where copies lie; made here, readable by this user only.
        budget_bytes: what all copies may take together.
        evicted: told the path of every copy that is deleted, so that workers unmap it.
    """

    def __init__(
        self, folder: Path, budget_bytes: int, evicted: Callable[[str], None] = lambda _path: None
    ) -> None:
        """Begin with no copy."""
        self._folder, self.budget_bytes, self._evicted = folder, budget_bytes, evicted
        folder.mkdir(mode=0o700)
        self._entries: dict[StageKey, _Entry] = {}  # least recently used first
        self._filling: dict[StageKey, asyncio.Event] = {}
        self._copies = 0

    @property
    def used_bytes(self) -> int:
        """Bytes booked for copies, complete or being filled."""
        return sum(entry.size_bytes for entry in self._entries.values())

    def holds(self, stage: StageKey) -> bool:
        """Whether a complete copy of a stage lies here."""
        entry = self._entries.get(stage)
        return entry is not None and entry.filled

    @asynccontextmanager
    async def borrow(self, stage: StageKey, weight_bytes: int) -> AsyncIterator[Loan]:
        """Keep a stage's copy in place while a worker reads it, or fills it if it is the first.

        Others that want the same stage wait until it is filled, so that files are read once. The
        loan has no copy if the budget cannot hold one now. A copy that was not reported as filled
        is deleted at the end.
        """
        while (filling := self._filling.get(stage)) is not None:
            await filling.wait()
        entry = self._entries.pop(stage, None) or self._book(stage, weight_bytes)
        if entry is None:
            yield Loan(None)
            return
        self._entries[stage] = entry  # the most recently used
        entry.users += 1
        if not entry.filled:
            self._filling[stage] = asyncio.Event()
        loan = Loan(HostCopy(str(entry.path), entry.filled, entry.size_bytes))
        try:
            yield loan
        finally:
            entry.users -= 1
            if not entry.filled:
                self._settle(stage, entry, loan.filled_bytes)

    def _book(self, stage: StageKey, weight_bytes: int) -> _Entry | None:
        needed = booked_bytes(weight_bytes)
        idle = [key for key, entry in self._entries.items() if not entry.users]
        spare = self.budget_bytes - self.used_bytes
        if needed > spare + sum(self._entries[key].size_bytes for key in idle):
            return None
        for key in idle:
            if needed <= self.budget_bytes - self.used_bytes:
                break
            self._evict(key)
        self._copies += 1  # a new path each time: a worker may still map the one before
        name = hashlib.sha256(f"{stage}#{self._copies}".encode()).hexdigest()[:32]
        return _Entry(self._folder / name, needed)

    def _settle(self, stage: StageKey, entry: _Entry, filled_bytes: int) -> None:
        """Take what the filling worker reported, and let the others go on."""
        if 0 < filled_bytes <= entry.size_bytes:
            entry.filled, entry.size_bytes = True, filled_bytes
        else:
            self._evict(stage)
        self._filling.pop(stage).set()

    def _evict(self, stage: StageKey) -> None:
        path = self._entries.pop(stage).path
        delete_copy(path)
        self._evicted(str(path))
        log.info("host_copy_deleted", stage=str(stage))

    def check_integrity(self) -> None:
        """Raise `LedgerError` if more is booked than allowed or a complete copy is not there."""
        if self.used_bytes > self.budget_bytes:
            message = f"Host store holds {self.used_bytes} of {self.budget_bytes} bytes."
            raise LedgerError(message)
        for stage, entry in self._entries.items():
            if entry.filled and entry.path.stat().st_size > entry.size_bytes:
                message = f"Host copy of {stage} is larger than the {entry.size_bytes} booked."
                raise LedgerError(message)
            if entry.users < 0 or (not entry.filled and stage not in self._filling):
                message = f"Host copy of {stage} is neither complete nor being filled."
                raise LedgerError(message)


class Loan:
    """A host copy lent for one load.

    Attributes:
        copy: where it lies, or None if the load must do without.
        filled_bytes: set by the borrower: what the copy that it filled takes; 0: it filled none.
    """

    def __init__(self, copy: HostCopy | None) -> None:
        """Lend `copy`."""
        self.copy = copy
        self.filled_bytes = 0


def delete_copy(path: Path) -> None:
    """Delete a copy and its layout; harmless if they were never written."""
    path.unlink(missing_ok=True)
    path.with_name(path.name + LAYOUT_SUFFIX).unlink(missing_ok=True)
