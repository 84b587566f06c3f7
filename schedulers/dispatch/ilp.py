"""Packing programs and what solves them: at most one option of each group, within capacities.

maximise sum(value * x), subject to sum(x) <= 1 in each group and sum(amount * x) <= capacity in
each row, x in {0, 1}. Solved by HiGHS within a time limit; `first_fit` is its start, its lower
bound and its fallback. Knows nothing of requests, devices or time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from enum import StrEnum
from math import inf
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from highspy._core import _Highs

_TOLERANCE = 1e-6
_MAXIMISE = -1  # HiGHS's `ObjSense`
_COLUMNWISE = 1  # HiGHS's `MatrixFormat`
_INTEGER = 1  # HiGHS's `HighsVarType`


class Demand(NamedTuple):
    """What an option takes of one row, if it is chosen."""

    row: int
    amount: int


class Program:
    """A packing program in the making.

    Options of a group are added in order of preference: `first_fit` takes the first that fits.
    """

    __slots__ = ("capacities", "demands", "groups", "values")

    def __init__(self, capacities: Iterable[int]) -> None:
        """Begin without options; there is a row for each capacity."""
        self.capacities = tuple(capacities)
        self.groups: list[int] = []
        self.values: list[float] = []
        self.demands: list[Sequence[Demand]] = []

    def add(self, group: int, value: float, demands: Sequence[Demand]) -> int:
        """Add an option; return its number."""
        self.groups.append(group)
        self.values.append(value)
        self.demands.append(demands)
        return len(self.groups) - 1

    def worth(self, chosen: Iterable[int]) -> float:
        """Return the objective of a choice."""
        return sum(self.values[option] for option in chosen)

    def is_feasible(self, chosen: Iterable[int]) -> bool:
        """Whether a choice keeps to groups and capacities."""
        left, seen = list(self.capacities), set[int]()
        for option in chosen:
            if self.groups[option] in seen:
                return False
            seen.add(self.groups[option])
            for demand in self.demands[option]:
                left[demand.row] -= demand.amount
        return min(left, default=0) >= 0

    def ceiling(self) -> float:
        """Return the objective if capacities did not matter: every group's best option."""
        best: dict[int, float] = {}
        for group, value in zip(self.groups, self.values, strict=True):
            best[group] = max(best.get(group, 0.0), value)
        return sum(best.values())


class Outcome(StrEnum):
    """How a solution was found."""

    OBVIOUS = "obvious"  # first fit gives every group its best
    OPTIMAL = "optimal"
    STOPPED = "stopped"  # the limit was reached with something better than first fit
    FALLBACK = "fallback"


class Solution(msgspec.Struct, frozen=True):
    """Chosen options, ascending, their worth, and an upper bound of what was possible."""

    chosen: tuple[int, ...]
    worth: float
    bound: float
    outcome: Outcome

    @property
    def gap(self) -> float:
        """Return the share of the bound that may be missing; 0 is proven optimal."""
        return max(0.0, self.bound - self.worth) / max(1.0, abs(self.bound))


class Budget:
    """Real seconds that all programs of one decision may take together."""

    def __init__(self, limit_s: float) -> None:
        """Begin to count."""
        self._ends_s = time.perf_counter() + limit_s

    @property
    def left_s(self) -> float:
        """Return what is left, at least 0."""
        return max(0.0, self._ends_s - time.perf_counter())


def first_fit(program: Program) -> tuple[int, ...]:
    """Return for each group, in order of its first option, the first option that still fits."""
    left = list(program.capacities)
    chosen: list[int] = []
    served: set[int] = set()
    for option, (group, demands) in enumerate(zip(program.groups, program.demands, strict=True)):
        if group not in served and all(left[row] >= amount for row, amount in demands):
            served.add(group)
            chosen.append(option)
            for row, amount in demands:
                left[row] -= amount
    return tuple(chosen)


def solve(program: Program, limit_s: float) -> Solution:
    """Return the best choice found in time, never worse than `first_fit`.

    The same program gives the same solution unless the limit was reached.
    """
    start = first_fit(program)
    worth, ceiling = program.worth(start), program.ceiling()
    if worth >= ceiling - _TOLERANCE:
        return Solution(start, worth, worth, Outcome.OBVIOUS)
    if limit_s <= 0.0:
        return Solution(start, worth, ceiling, Outcome.FALLBACK)
    return _optimise(program, start, limit_s)


def relaxation(program: Program) -> float:
    """Return the objective of the linear relaxation: nothing integral is better."""
    if not program.groups:
        return 0.0
    highs = _model(program, integral=False)
    highs.run()
    return float(highs.getInfo().objective_function_value)


def _optimise(program: Program, start: tuple[int, ...], limit_s: float) -> Solution:
    highs = _model(program, integral=True)
    highs.setOptionValue("time_limit", limit_s)
    highs.setOptionValue("mip_rel_gap", 0.0)
    highs.setSolution(len(start), list(start), [1.0] * len(start))
    highs.run()
    facts = highs.getInfo()
    bound = min(float(facts.mip_dual_bound), program.ceiling())
    found = highs.getSolution().col_value
    chosen = tuple(i for i, x in enumerate(found) if x > 0.5)  # noqa: PLR2004 - binaries
    worth, least = program.worth(chosen), program.worth(start)
    if worth < least or not program.is_feasible(chosen):
        return Solution(start, least, max(bound, least), Outcome.FALLBACK)
    proven = bound - worth <= _TOLERANCE * max(1.0, abs(worth))
    outcome = Outcome.OPTIMAL if proven else Outcome.STOPPED
    return Solution(chosen, worth, worth if proven else bound, outcome)


def _model(program: Program, *, integral: bool) -> _Highs:
    """Return a silent HiGHS that holds a program, column by column."""
    # Only who solves programs pays for the library and numpy. Its public class prints a banner when
    # it is made, before it can be told not to (HiGHS issues 1932 and 2749); this is its base.
    from highspy._core import _Highs  # noqa: PLC0415

    rows = {group: row for row, group in enumerate(dict.fromkeys(program.groups))}
    starts, indices, amounts = [0], list[int](), list[float]()
    for group, demands in zip(program.groups, program.demands, strict=True):
        indices.append(rows[group])
        amounts.append(1.0)
        for row, amount in demands:
            indices.append(len(rows) + row)
            amounts.append(float(amount))
        starts.append(len(indices))
    columns, height = len(program.groups), len(rows) + len(program.capacities)
    highs = _Highs()
    highs.setOptionValue("output_flag", False)  # noqa: FBT003 - HiGHS's signature
    highs.setOptionValue("threads", 1)
    highs.passModel(
        columns, height, len(indices), _COLUMNWISE, _MAXIMISE, 0.0,
        program.values, [0.0] * columns, [1.0] * columns,
        [-inf] * height, [1.0] * len(rows) + [float(c) for c in program.capacities],
        starts, indices, amounts, [_INTEGER if integral else 0] * columns,
    )  # fmt: skip
    return highs
