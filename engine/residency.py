"""Which stage weights live on a device, and a ledger of every byte of it that is promised.

Pure accounting: nothing here moves weights. The loader asks `make_room` what to evict, tells the
executor to do it, and books the result. A reservation that does not fit raises; nothing that does
not fit is ever launched.
"""

from __future__ import annotations

from engine.errors import LedgerError
from engine.types import DeviceId, DeviceInfo, StageKey, TaskId


class DeviceMemory:
    """Ledger of one device: resident weights by stage, activations by running task.

    Attributes:
        capacity_bytes: the device's memory minus the reserve for what no profile sees.
        loaded: stages whose weights have arrived; the others in `weights` are on their way.
    """

    def __init__(
        self, info: DeviceInfo, reserve_bytes: int = 0, changed: set[DeviceId] | None = None
    ) -> None:
        """Begin empty; whenever it changes, the device is put into `changed`."""
        self._changed = set() if changed is None else changed
        self.info = info
        self.capacity_bytes = info.memory_bytes - reserve_bytes
        self.weights: dict[StageKey, int] = {}
        self.loaded: set[StageKey] = set()
        self.activations: dict[TaskId, int] = {}
        self._in_use: dict[TaskId, frozenset[StageKey]] = {}
        self._last_used: dict[StageKey, int] = {}
        self._uses = 0

    @property
    def used_bytes(self) -> int:
        """Bytes promised to weights and activations."""
        return sum(self.weights.values()) + sum(self.activations.values())

    @property
    def free_bytes(self) -> int:
        """Bytes that nobody was promised."""
        return self.capacity_bytes - self.used_bytes

    def admit(self, stage: StageKey, size_bytes: int) -> None:
        """Promise memory to a stage's weights before they are loaded."""
        if stage in self.weights:
            message = f"Stage {stage} is already resident on {self.info.id}."
            raise LedgerError(message)
        self._expect_free(size_bytes, f"weights of {stage}")
        self.weights[stage] = size_bytes
        self._changed.add(self.info.id)
        self.touch(stage)

    def evict(self, stage: StageKey) -> None:
        """Take back the memory of a stage's weights."""
        if stage in self.loaded and stage not in self.idle_stages():
            message = f"Stage {stage} is in use on {self.info.id}; it cannot be evicted."
            raise LedgerError(message)
        self.loaded.discard(stage)
        self._changed.add(self.info.id)
        if self.weights.pop(stage, None) is None:
            message = f"Stage {stage} is not resident on {self.info.id}; it cannot be evicted."
            raise LedgerError(message)

    def reserve(
        self, task: TaskId, size_bytes: int, stages: frozenset[StageKey] = frozenset()
    ) -> None:
        """Promise activation memory to a task before it is launched; `stages` stay until it ends."""
        if task in self.activations:
            message = f"Task {task} already holds memory on {self.info.id}."
            raise LedgerError(message)
        self._expect_free(size_bytes, f"activations of task {task}")
        self.activations[task] = size_bytes
        self._in_use[task] = stages
        self._changed.add(self.info.id)

    def settle(self, task: TaskId) -> None:
        """Take back a task's activation memory; harmless if it holds none."""
        self.activations.pop(task, None)
        self._in_use.pop(task, None)
        self._changed.add(self.info.id)

    def touch(self, stage: StageKey) -> None:
        """Remember that a stage was used just now."""
        self._uses += 1
        self._last_used[stage] = self._uses

    def idle_stages(self) -> tuple[StageKey, ...]:
        """Return the loaded stages that no task uses, least recently used first."""
        idle = self.loaded.difference(*self._in_use.values())
        return tuple(sorted(idle, key=lambda stage: self._last_used.get(stage, 0)))

    def make_room(
        self,
        needed_bytes: int,
        keep: frozenset[StageKey],
        desired: frozenset[StageKey] = frozenset(),
    ) -> tuple[StageKey, ...] | None:
        """Return which stages to evict so that `needed_bytes` become free; None if impossible.

        Stages outside `desired` go first, then the least recently used. `keep` always stays, and
        so does what is in use or still being loaded.
        """
        candidates = sorted(
            (stage for stage in self.idle_stages() if stage not in keep),
            key=lambda stage: stage in desired,
        )
        chosen: list[StageKey] = []
        missing = needed_bytes - self.free_bytes
        for stage in candidates:
            if missing <= 0:
                break
            chosen.append(stage)
            missing -= self.weights[stage]
        return tuple(chosen) if missing <= 0 else None

    def _expect_free(self, size_bytes: int, what: str) -> None:
        if size_bytes > self.free_bytes:
            message = (
                f"{what} need {size_bytes} bytes but {self.info.id} has {self.free_bytes} free "
                f"of {self.capacity_bytes}."
            )
            raise LedgerError(message)

    def expect_booked(self, stage: StageKey) -> None:
        """Raise `LedgerError` if a stage that is on its way was promised no memory."""
        if stage not in self.weights or stage in self.loaded:
            message = f"Stage {stage} arrives on {self.info.id} without having been booked."
            raise LedgerError(message)

    def check_integrity(self) -> None:
        """Raise `LedgerError` if more is promised than the device has, or a size is negative."""
        sizes = [*self.weights.values(), *self.activations.values()]
        if self.used_bytes > self.capacity_bytes or any(size < 0 for size in sizes):
            message = (
                f"Ledger of {self.info.id} is broken: {self.used_bytes} of {self.capacity_bytes}."
            )
            raise LedgerError(message)
