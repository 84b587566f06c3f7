"""Packing: from counts of roles to devices, node by node.

First `lay_out` decides what each node of a given size holds: pools together on as few nodes as
possible, then primaries in blocks of their width, so that what is narrow fills what is broken.
Then `seat` decides which real node takes which of these and which device which role, with the
fewest bytes to load. Both assignments are exact within nodes of one size; which *sizes* host the
pools is chosen by trying both orders (broken nodes first, whole nodes first).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from engine.types import DeviceId, StageKey
from schedulers.planner.matching import least_cost
from schedulers.planner.replicas import Role
from schedulers.planner.roster import Slot, by_node

EMPTY: Role = frozenset()


class Share(msgspec.Struct, frozen=True):
    """So many devices of one role; primaries lie in node-local blocks of `width`."""

    role: Role
    devices: int
    width: int = 1


class Recipe(msgspec.Struct, frozen=True):
    """What a cluster should consist of, before it is known which device is what.

    Stages of `swapped` roles do not fit a device together and evict each other.
    """

    name: str
    primaries: tuple[Share, ...]
    pools: tuple[Share, ...] = ()
    swapped: frozenset[Role] = frozenset()

    @property
    def width(self) -> int:
        """The widest block that somebody needs."""
        return max((share.width for share in self.primaries), default=1)


class Layout(msgspec.Struct, frozen=True):
    """What each node holds, nodes in descending order of size; `sizes[i]` belongs to `nodes[i]`."""

    sizes: tuple[int, ...]
    nodes: tuple[Counter[Role], ...]


class Seating(msgspec.Struct, frozen=True):
    """Which device gets which role, and the bytes that have to be loaded for it."""

    roles: Mapping[DeviceId, Role]
    load_bytes: int


def lay_out(recipe: Recipe, sizes: Sequence[int], *, broken_first: bool) -> Layout:
    """Fill nodes of these sizes with the roles of a recipe; what is left over stays empty."""
    ordered = tuple(sorted(sizes, reverse=True))
    space = _Space(ordered)
    for share in recipe.pools:
        space.pour(share, broken_first=broken_first, block=recipe.width)
    for share in sorted(recipe.primaries, key=lambda s: (-s.width, -s.devices, sorted(s.role))):
        space.stack(share)
    return Layout(ordered, tuple(space.held))


class _Space:
    """Nodes that are being filled."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._free = list(sizes)
        self.held: list[Counter[Role]] = [Counter() for _ in sizes]

    def _put(self, node: int, role: Role, devices: int) -> int:
        self.held[node][role] += devices
        self._free[node] -= devices
        return devices

    def pour(self, share: Share, *, broken_first: bool, block: int) -> None:
        """Fill one node after the other, begun nodes first."""

        def order(node: int) -> tuple[bool, bool, int]:
            untouched = self._free[node] == self._sizes[node]
            broken = self._sizes[node] % block != 0
            return untouched, broken != broken_first, node

        left = share.devices
        while left and any(self._free):
            node = min((i for i, free in enumerate(self._free) if free), key=order)
            left -= self._put(node, share.role, min(left, self._free[node]))

    def stack(self, share: Share) -> None:
        """Take whole blocks from the nodes with most of them, then the smallest fragments."""
        left, width = share.devices, share.width
        while left >= width and max(self._free, default=0) >= width:
            node = max(range(len(self._free)), key=lambda i: (self._free[i] // width, -i))
            blocks = min(left // width, self._free[node] // width)
            left -= self._put(node, share.role, blocks * width)
        while left and any(self._free):
            node = min((i for i, free in enumerate(self._free) if free), key=self._free.__getitem__)
            left -= self._put(node, share.role, min(left, self._free[node]))


def seat(layout: Layout, slots: tuple[Slot, ...], weight_bytes: Mapping[StageKey, int]) -> Seating:
    """Give every device a role of the layout with the fewest bytes to load.

    Among equals the fewest changed (device, stage) pairs win, then the order of names.
    """
    nodes = list(by_node(slots).values())
    pricing = _Pricing(weight_bytes)
    roles: dict[DeviceId, Role] = {}
    total = 0
    for size in sorted({len(node) for node in nodes}):
        homes = [node for node in nodes if len(node) == size]
        plans = [
            held for held, wide in zip(layout.nodes, layout.sizes, strict=True) if wide == size
        ]
        kinds = Counter(_filled(plan, size) for plan in plans)
        names = sorted(kinds, key=_name)
        costs = [[pricing.of_node(node, kind).cost for kind in names] for node in homes]
        for node, column in zip(homes, least_cost(costs, [kinds[k] for k in names]), strict=True):
            fit = pricing.of_node(node, names[column])
            roles.update(zip((slot.id for slot in node), fit.roles, strict=True))
            total += sum(
                pricing.load_bytes(slot, role) for slot, role in zip(node, fit.roles, strict=True)
            )
    return Seating(roles, total)


_Kind = tuple[tuple[Role, int], ...]


class _Fit(msgspec.Struct, frozen=True):
    """The best roles of one node's devices under one plan, in the order of its slots."""

    cost: int
    roles: tuple[Role, ...]


class _Pricing:
    """What it costs to turn devices into roles; remembers equal nodes."""

    def __init__(self, weight_bytes: Mapping[StageKey, int]) -> None:
        self._weight_bytes = weight_bytes
        self._known: dict[tuple[object, _Kind], _Fit] = {}

    def load_bytes(self, slot: Slot, role: Role) -> int:
        return sum(self._weight_bytes[stage] for stage in role - slot.resident)

    def _cost(self, slot: Slot, role: Role) -> int:
        return self.load_bytes(slot, role) + len(role ^ slot.desired)

    def of_node(self, node: Sequence[Slot], kind: _Kind) -> _Fit:
        key = (tuple((slot.resident, slot.desired) for slot in node), kind)
        if key not in self._known:
            costs = [[self._cost(slot, role) for role, _ in kind] for slot in node]
            columns = least_cost(costs, [count for _, count in kind])
            cost = sum(row[column] for row, column in zip(costs, columns, strict=True))
            self._known[key] = _Fit(cost, tuple(kind[column][0] for column in columns))
        return self._known[key]


def _filled(plan: Counter[Role], size: int) -> _Kind:
    """Return the roles of a node with their counts, the empty role for what is left over."""
    counts = Counter({role: count for role, count in plan.items() if count})
    counts[EMPTY] += size - counts.total()
    return tuple(
        sorted(((r, n) for r, n in counts.items() if n), key=lambda item: _role_name(item[0]))
    )


def _name(kind: _Kind) -> list[tuple[list[StageKey], int]]:
    return [(_role_name(role), count) for role, count in kind]


def _role_name(role: Role) -> list[StageKey]:
    return sorted(role)
