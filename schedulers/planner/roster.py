"""The roster: which devices a plan may count on, and on which node each of them is.

A configured device that has not come up yet is expected for a while; one that was up and went is
lost until it returns.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from engine.types import ClusterView, DeviceId, DeviceView, StageKey

UNKNOWN_NODE = "?"


class Slot(msgspec.Struct, frozen=True):
    """A device as the planner sees it: where it is, what it takes and what it holds."""

    id: DeviceId
    node: str
    capacity_bytes: int
    resident: frozenset[StageKey] = frozenset()
    desired: frozenset[StageKey] = frozenset()
    is_live: bool = True


class Roster:
    """Remembers which devices were seen, so that "not yet up" and "lost" are told apart."""

    def __init__(self, nodes: Mapping[DeviceId, str] | None, boot_grace_s: float) -> None:
        """Know the nodes of devices, as far as somebody told."""
        self._nodes = dict(nodes or {})
        self._boot_grace_s = boot_grace_s
        self._capacities: dict[DeviceId, int] = {}
        self._first_s: float | None = None

    def slots(self, view: ClusterView) -> tuple[Slot, ...]:
        """Return live and expected devices in configured order; empty if no capacity is known."""
        if self._first_s is None:
            self._first_s = view.now_s
        live = {device.info.id: device for device in view.devices}
        for device in view.devices:
            self._nodes[device.info.id] = device.info.node
            self._capacities[device.info.id] = device.capacity_bytes
        if not self._capacities:
            return ()
        typical = min(self._capacities.values())
        waits = view.now_s < self._first_s + self._boot_grace_s
        ids = dict.fromkeys((*view.configured, *live))
        return tuple(
            self._slot(id_, live.get(id_), typical)
            for id_ in ids
            if id_ in live or (waits and id_ not in self._capacities)
        )

    def _slot(self, id_: DeviceId, device: DeviceView | None, typical: int) -> Slot:
        known = set(self._nodes.values())
        alone = next(iter(known)) if len(known) == 1 else UNKNOWN_NODE
        node = self._nodes.get(id_, alone)
        if device is None:
            return Slot(id_, node, typical, is_live=False)
        return Slot(id_, node, device.capacity_bytes, device.resident, device.desired)


def by_node(slots: tuple[Slot, ...]) -> dict[str, tuple[Slot, ...]]:
    """Return the slots of each node, nodes in order of their name."""
    nodes: dict[str, list[Slot]] = {}
    for slot in slots:
        nodes.setdefault(slot.node, []).append(slot)
    return {name: tuple(nodes[name]) for name in sorted(nodes)}
