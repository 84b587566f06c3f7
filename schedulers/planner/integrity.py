"""What must hold of every placement, as a function that tests, the planner and a simulator call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from engine.types import DeviceId, StageKind
from schedulers.planner.capacity import room
from schedulers.planner.replicas import Memory, Role, Wanted
from schedulers.planner.roster import Slot

E, D, C = StageKind.ENCODE, StageKind.DIFFUSE, StageKind.DECODE


class PlacementError(Exception):
    """A placement breaks a promise: a bug in the planner, never a user's mistake."""


def unserved(
    classes: Iterable[Wanted], nodes: Sequence[Counter[Role]], memory: Memory
) -> list[Wanted]:
    """Return the classes for which no team exists under these roles."""
    return [item for item in classes if not _served(item, nodes, memory)]


def _served(item: Wanted, nodes: Sequence[Counter[Role]], memory: Memory) -> bool:
    held = {role for count in nodes for role in count}
    wide = any(
        sum(n for role, n in count.items() if room(item, role, memory)) >= item.need.degree
        for count in nodes
    )
    return wide and all(any(_holds(item, kind, role, memory) for role in held) for kind in (E, C))


def _holds(item: Wanted, kind: StageKind, role: Role, memory: Memory) -> bool:
    stage = item.load.stage(kind)
    return stage in role and item.load.bytes_of(kind, 1) <= memory.beside(stage, role)


def check_integrity(
    roles: Mapping[DeviceId, Role],
    slots: Sequence[Slot],
    classes: Sequence[Wanted],
    memory: Memory,
) -> None:
    """Raise `PlacementError` if a device holds too much or a class has no team.

    Args:
        roles: what each device should hold.
        slots: the devices that can be counted on.
        classes: what must be servable.
        memory: weights and the smallest device; roles that are meant to swap.
    """
    for device, role in roles.items():
        if memory.of(role) > memory.capacity_bytes and role not in memory.swapped:
            message = f"{device} should hold {memory.of(role)} bytes of {memory.capacity_bytes}."
            raise PlacementError(message)
    nodes = nodes_of(roles, slots)
    for item in unserved(classes, nodes, memory):
        load = item.load
        message = (
            f"Nothing can serve {load.model} at {load.demand.shape} (degree {item.need.degree})."
        )
        raise PlacementError(message)


def nodes_of(roles: Mapping[DeviceId, Role], slots: Iterable[Slot]) -> list[Counter[Role]]:
    """Return what each node holds, in order of the nodes' names."""
    nodes: dict[str, Counter[Role]] = {}
    for slot in slots:
        nodes.setdefault(slot.node, Counter())[roles.get(slot.id, frozenset())] += 1
    return [nodes[name] for name in sorted(nodes)]
