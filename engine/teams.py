"""Gangs of devices: a team is gained whole or not at all, and a device serves one team at a time.

Devices are taken in one global order, so that two teams can never wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.errors import LedgerError
from engine.types import DeviceId, TaskId


class Teams:
    """Which device works for which task, and until when it is expected to."""

    def __init__(self, changed: set[DeviceId] | None = None) -> None:
        """Begin with all devices idle; a device that is taken or freed is put into `changed`."""
        self._changed = set() if changed is None else changed
        self._holders: dict[DeviceId, TaskId] = {}
        self._until_s: dict[DeviceId, float] = {}

    def acquire(self, task: TaskId, team: Sequence[DeviceId], until_s: float) -> None:
        """Take all devices of `team` for `task`, or raise `LedgerError` and take none."""
        devices = sorted(team)
        if not devices or len(set(devices)) != len(devices):
            message = f"Task {task} asks for the malformed team {devices}."
            raise LedgerError(message)
        taken = [device for device in devices if device in self._holders]
        if taken:
            message = f"Task {task} asks for {taken}, which work for another task."
            raise LedgerError(message)
        for device in devices:
            self._holders[device] = task
            self._until_s[device] = until_s
        self._changed.update(devices)

    def extend(self, task: TaskId, more: Sequence[DeviceId]) -> None:
        """Give a working task idle devices as well, or raise `LedgerError` and give none."""
        until = [self._until_s[d] for d, holder in self._holders.items() if holder == task]
        if not until:
            message = f"Task {task} holds no team that could be extended by {list(more)}."
            raise LedgerError(message)
        if more:
            self.acquire(task, more, until[0])

    def transfer(
        self, holder: TaskId, heir: TaskId, team: Sequence[DeviceId], until_s: float
    ) -> None:
        """Hand those devices of `holder` that `team` names to `heir`, and free the others."""
        strangers = [d for d in team if self._holders.get(d) != holder]
        if strangers:
            message = f"Task {holder} cannot hand on {strangers}, which it does not hold."
            raise LedgerError(message)
        self.release(holder)
        self.acquire(heir, team, until_s)

    def release(self, task: TaskId) -> None:
        """Free every device that works for `task`; harmless if there is none."""
        for device in [d for d, holder in self._holders.items() if holder == task]:
            del self._holders[device], self._until_s[device]
            self._changed.add(device)

    def busy_until_s(self, device: DeviceId) -> float | None:
        """Return when a device's team is expected to finish; None if it is idle."""
        return self._until_s.get(device)

    @property
    def busy(self) -> frozenset[DeviceId]:
        """Devices that work for a team now."""
        return frozenset(self._holders)

    def check_integrity(self) -> None:
        """Raise `LedgerError` if holders and expected ends disagree."""
        if self._holders.keys() != self._until_s.keys():
            message = "Team table is broken: a device is held without an expected end."
            raise LedgerError(message)
