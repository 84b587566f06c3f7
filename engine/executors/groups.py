"""Which communication groups the devices of one node are in, decided here for all members.

A group never changes and never heals: when a member dies or fails in mid-launch, its groups are
forgotten, and the same team meets next under a new name. Aligned teams of two, four and eight are
made as soon as their members are up; others at their first launch, and only so many are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import count
from typing import Protocol

from engine.messages import BreakGroup, JoinGroup, LeaveGroup, Seat, ToWorker
from engine.types import DeviceId

ALIGNED = (2, 4, 8)
MOST_HOT = 8  # groups beside the aligned ones; each costs its members sockets and threads
Members = tuple[DeviceId, ...]


class Post(Protocol):
    """How to reach workers; what is for a device that is down is dropped."""

    def send(self, device: DeviceId, message: ToWorker) -> None:
        """Send an order; a device obeys its orders one after another."""
        ...

    def interrupt(self, device: DeviceId, message: BreakGroup) -> None:
        """Say something that is heard whatever the device is doing."""
        ...


class GroupTable:
    """Names of groups by their members, who are always in the order of the node's devices.

    Args:
        widest: the largest aligned teams that meet as soon as their members are up; wider ones meet
            at their first launch.
    """

    def __init__(self, post: Post, devices: Sequence[DeviceId], widest: int = max(ALIGNED)) -> None:
        """Begin with all devices down and no groups."""
        self._post, self._widest = post, widest
        self._index = {device: i for i, device in enumerate(devices)}
        self._aligned = frozenset(_aligned(tuple(devices)))
        self._names: OrderedDict[Members, str] = OrderedDict()
        self._up: set[DeviceId] = set()
        self._numbers = count(1)

    def in_order(self, team: Sequence[DeviceId]) -> Members:
        """Return a team by rank: the first leads."""
        return tuple(sorted(team, key=self._index.__getitem__))

    def came_up(self, device: DeviceId) -> None:
        """Let the aligned teams of a new process meet, as far as their members are up."""
        self._up.add(device)
        for members in sorted(self._aligned, key=len):
            meets = len(members) <= self._widest and device in members
            if meets and self._up.issuperset(members):
                self._make(members)

    def went_down(self, device: DeviceId) -> None:
        """End every group of a process that ended, for its peers too."""
        self._up.discard(device)
        for members in [m for m in self._names if device in m]:
            self.break_up(members)

    def seats(self, members: Members) -> tuple[Seat | None, ...]:
        """Return each member's place in the team's group, made now if need be; alone, none."""
        if len(members) == 1:
            return (None,)
        if members not in self._names:
            self._make(members)
        self._names.move_to_end(members)
        return self._seats(members)

    def _seats(self, members: Members) -> tuple[Seat, ...]:
        name, size = self._names[members], len(members)
        return tuple(Seat(name, rank, size) for rank in range(size))

    def break_up(self, members: Members) -> None:
        """End a group at once, because a member failed and the others must not wait for it."""
        name = self._names.get(members)
        if name is not None:
            for device in members:
                self._post.interrupt(device, BreakGroup(name))
            self._dissolve(members)

    def _make(self, members: Members) -> None:
        self._names[members] = f"group-{next(self._numbers)}"
        for device, seat in zip(members, self._seats(members), strict=True):
            self._post.send(device, JoinGroup(seat))
        hot = [m for m in self._names if m not in self._aligned]
        for coldest in hot[: max(0, len(hot) - MOST_HOT)]:
            self._dissolve(coldest)  # heard after whatever the members still run

    def _dissolve(self, members: Members) -> None:
        name = self._names.pop(members)
        for device in members:
            self._post.send(device, LeaveGroup(name))

    def check_integrity(self) -> None:
        """Raise if a group has a member that is down, or too many are kept."""
        hot = [m for m in self._names if m not in self._aligned]
        assert len(hot) <= MOST_HOT, hot
        for members in self._names:
            assert self._up.issuperset(members), members


def _aligned(devices: Members) -> list[Members]:
    return [
        devices[first : first + size]
        for size in ALIGNED
        for first in range(0, len(devices) - size + 1, size)
    ]
