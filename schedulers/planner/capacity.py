"""How much of a demand a placement sustains: the planner's objective.

A fluid model. Diffuse work of a class may go to any device whose role leaves it memory, and only
whole node-local blocks count for wide classes. Encode and decode go to their pools first; what
is too much spills onto primaries that hold the stage, where it costs more than its own time,
because one busy device keeps a whole block from wide requests.

The factor is the multiple of the demand at which the first constraint becomes tight (Hall's
condition over unions of interchangeable roles): 1.0 is saturation. It ignores variance, loads
and batching.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, combinations
from typing import TypeVar

import msgspec

from engine.types import StageKey, StageKind
from schedulers.planner.replicas import Memory, Role, Wanted

E, D, C = StageKind.ENCODE, StageKind.DIFFUSE, StageKind.DECODE
_BISECTIONS = 40
_MOST = 1e6
_MANY = 8  # subsets of more items would cost more than the decision is worth
_T = TypeVar("_T")


class Balance(msgspec.Struct, frozen=True):
    """How a placement meets a demand.

    Attributes:
        factor: the multiple of the demand that it sustains; 0 if a class cannot be served.
        ratios: capacity over demand of diffuse and of each dedicated pool, by stage kind.
        dedicated: devices of each of these.
        wide: primaries in whole node-local blocks of the widest class.
        loose: primaries in no such block.
    """

    factor: float
    ratios: Mapping[str, float]
    dedicated: Mapping[str, int]
    wide: int
    loose: int

    def imbalance(self) -> float:
        """Return fastest over slowest stage; a pool of one device cannot be too fast."""
        least = min(self.ratios.values(), default=1.0)
        most = max(
            (ratio for kind, ratio in self.ratios.items() if self.dedicated[kind] > 1),
            default=least,
        )
        return most / least if least > 0 else float("inf")


class _Site(msgspec.Struct, frozen=True):
    """Where the diffuse work of some classes may go, with that work by width."""

    roles: frozenset[Role]
    work: Mapping[int, float]  # width -> work of classes that need at least that width


def sustained(
    classes: Sequence[Wanted],
    nodes: Sequence[Counter[Role]],
    memory: Memory,
    *,
    fragmentation: float,
) -> Balance:
    """Return what nodes with these roles sustain of the demand in `classes`."""
    asked = [item for item in classes if item.load.rate_per_s > 0]
    sites = _sites(asked, {role for count in nodes for role in count}, memory)
    fluid = _Fluid(asked, nodes, sites, memory, fragmentation)
    widest = max((item.need.degree for item in classes), default=1)
    primaries = frozenset(role for count in nodes for role in count if _diffuses(role))
    wide = fluid.blocks(primaries, widest)
    return Balance(fluid.factor(), *fluid.ratios(), wide, fluid.blocks(primaries, 1) - wide)


def room(item: Wanted, role: Role, memory: Memory) -> bool:
    """Return whether a device of this role can be one of a team that diffuses the class."""
    stage = item.load.stage(D)
    return stage in role and item.load.diffuse_bytes[item.need.degree] <= memory.beside(stage, role)


def _sites(asked: Sequence[Wanted], roles: set[Role], memory: Memory) -> list[_Site]:
    by_roles: dict[frozenset[Role], list[Wanted]] = {}
    for item in asked:
        hits = frozenset(role for role in roles if room(item, role, memory))
        by_roles.setdefault(hits, []).append(item)
    return [
        _Site(
            hits,
            {
                width: sum(item.work for item in items if item.need.degree >= width)
                for width in {1} | {item.need.degree for item in items}
            },
        )
        for hits, items in by_roles.items()
    ]


class _Fluid:
    """The constraints of one placement under one demand."""

    def __init__(
        self,
        asked: Sequence[Wanted],
        nodes: Sequence[Counter[Role]],
        sites: Sequence[_Site],
        memory: Memory,
        fragmentation: float,
    ) -> None:
        self._sites, self._nodes = sites, nodes
        total: Counter[Role] = sum(nodes, Counter())
        self._primaries = {r: n for r, n in total.items() if _diffuses(r)}
        self._pools = {r: n for r, n in total.items() if r and r not in self._primaries}
        self._work: dict[StageKey, float] = {}
        for item in asked:
            for kind in (E, C):
                stage = item.load.stage(kind)
                self._work[stage] = self._work.get(stage, 0.0) + item.work_of(kind)
        widest = max((item.need.degree for item in asked), default=1)
        self._spill_cost = 1.0 + fragmentation * (widest - 1)
        self._memory = memory
        self._unions = list(_unions(sites))

    def factor(self) -> float:
        """Return the greatest feasible multiple of the demand."""
        if any(not site.roles for site in self._sites):
            return 0.0
        high = min((self._width_bound(group) for group in self._unions), default=_MOST)
        if self._feasible(high):
            return high
        low = 0.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._feasible(middle) else (low, middle)
        return low

    def _width_bound(self, group: Sequence[_Site]) -> float:
        """Return the multiple at which blocks of some width run out, spill left aside."""
        roles = frozenset(chain.from_iterable(site.roles for site in group))
        bounds = [_MOST]
        for width in {width for site in group for width in site.work}:
            work = sum(_at_least(site.work, width) for site in group)
            if work > 0:
                bounds.append(self.blocks(roles, width) / work)
        return min(bounds)

    def blocks(self, roles: frozenset[Role], width: int) -> int:
        """Return devices of these roles in whole node-local blocks."""
        held = (sum(count[role] for role in roles) for count in self._nodes)
        return sum(devices // width * width for devices in held)

    def _feasible(self, factor: float) -> bool:
        """Return whether the spill of both pools finds room beside the diffuse work."""
        spill = self._spill(factor)
        demands = [(site.roles, factor * site.work[1]) for site in self._sites]
        for stage, amount in spill.items():
            if amount > 0:
                homes = frozenset(role for role in self._primaries if stage in role)
                demands.append((homes, amount * self._spill_cost))
        return _hall(demands, self._primaries)

    def _spill(self, factor: float) -> dict[StageKey, float]:
        """Return the encode and decode work that its pools cannot take."""
        left = {stage: factor * work for stage, work in sorted(self._work.items())}
        for role, devices in sorted(
            self._pools.items(), key=lambda pool: (len(pool[0]), sorted(pool[0]))
        ):
            free = float(devices)
            for stage in sorted(role):
                taken = min(free, left.get(stage, 0.0))
                free -= taken
                if stage in left:
                    left[stage] -= taken
        return left

    def ratios(self) -> tuple[dict[str, float], dict[str, int]]:
        """Return capacity over demand, and devices, of diffuse and of each dedicated pool."""
        ratios, dedicated = {}, {}
        work = {D: sum(site.work[1] for site in self._sites)}
        counts = {D: sum(self._primaries.values())}
        for kind in (E, C):
            counts[kind] = sum(n for r, n in self._pools.items() if any(s.kind is kind for s in r))
            pooled = {stage for role in self._pools for stage in role if stage.kind is kind}
            work[kind] = sum(self._work.get(stage, 0.0) for stage in pooled)
        for kind in StageKind:
            if counts[kind] and work[kind] > 0:
                ratios[kind.value] = counts[kind] / work[kind]
                dedicated[kind.value] = counts[kind]
        return ratios, dedicated


def _diffuses(role: Role) -> bool:
    return any(stage.kind is D for stage in role)


def _at_least(work: Mapping[int, float], width: int) -> float:
    """Return the work of classes that need `width` or more; `work` has some widths only."""
    above = [known for known in work if known >= width]
    return work[min(above)] if above else 0.0


def _hall(demands: Sequence[tuple[frozenset[Role], float]], capacity: Mapping[Role, int]) -> bool:
    """Return whether all demands fit, each on its own roles only (Hall's condition)."""
    by_roles: dict[frozenset[Role], float] = {}
    for roles, amount in demands:
        by_roles[roles] = by_roles.get(roles, 0.0) + amount
    for group in _unions(list(by_roles.items())):
        homes = frozenset(chain.from_iterable(roles for roles, _ in group))
        if sum(amount for _, amount in group) > sum(capacity[role] for role in homes) + 1e-9:
            return False
    return True


def _unions(items: Sequence[_T]) -> Iterator[tuple[_T, ...]]:
    """Yield all non-empty subsets; of very many items only each alone and all together."""
    sizes = range(1, len(items) + 1) if len(items) <= _MANY else (1, len(items))
    for size in sizes:
        yield from combinations(items, size)
