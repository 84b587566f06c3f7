"""Starts by an integer program: all waiting diffuses are weighed against one another at once.

Requests of one class of service (elders, on time, late; each priority by itself) make a program of
what each could do now or a little later; a class gets what the ones before it left. What the
program does not start is treated as by the greedy starts: it waits, preempts, or takes what there
is. The decision runs on the engine's event loop, so all programs together have a time limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, product
from typing import NamedTuple

import msgspec

from engine.types import RequestId
from schedulers.dispatch.board import Node
from schedulers.dispatch.decomposition import Block, blocks_of
from schedulers.dispatch.horizon import Horizon
from schedulers.dispatch.ilp import Budget, Program, Solution, relaxation, solve
from schedulers.dispatch.objective import Prices, Worth
from schedulers.dispatch.preemption import Preemption
from schedulers.dispatch.prospects import Prospect
from schedulers.dispatch.reservations import Reservations
from schedulers.dispatch.round import Round
from schedulers.dispatch.starts import begin, start_anyhow, start_in_time
from schedulers.dispatch.supply import Kind, Room, Supply


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How large a program may become, and how long it may take.

    Attributes:
        budget_s: real seconds for all programs of one decision.
        block_nodes: nodes that one program looks at.
        block_requests: requests that one program looks at, most urgent first.
        later: further moments at which a start is thought of: when these shares of the busy
            devices are free.
    """

    budget_s: float = 0.1
    block_nodes: int = 16
    block_requests: int = 64
    later: tuple[float, ...] = ()


class Option(NamedTuple):
    """One thing that a request could do."""

    prospect: Prospect
    kind: Kind
    degree: int
    window: int
    start_s: float
    finish_s: float
    value: float


class Considered(msgspec.Struct, frozen=True):
    """One option of a request, as it was weighed."""

    nodes: tuple[Node, ...]
    degree: int
    start_s: float
    finish_s: float
    on_time: bool
    value: float
    chosen: bool


class _Weighed:
    """A program with what its options mean, and its solution."""

    __slots__ = ("options", "program", "solution")

    def __init__(self, options: list[Option], program: Program, solution: Solution) -> None:
        self.options, self.program, self.solution = options, program, solution


class AssignedStarts:
    """A `Starter`; remembers what it weighed in the last decision, for who asks."""

    def __init__(self, limits: Limits | None = None, prices: Prices | None = None) -> None:
        """Decide within `limits`, by `prices`."""
        self._limits, self._prices = limits or Limits(), prices or Prices()
        self._weighed: list[_Weighed] = []

    def __call__(self, decision: Round, prospects: Sequence[Prospect]) -> None:
        """Start what is best; `prospects` come most urgent first."""
        self._weighed.clear()
        budget = Budget(self._limits.budget_s)
        leftovers = _Leftovers(decision, prospects)
        for _service, group in groupby(prospects, _service_of):
            waiting = list(group)
            started = self._assign(decision, waiting, budget)
            for prospect in waiting:
                if prospect.task.id not in started:
                    leftovers.treat(prospect)

    def explain(self, request: RequestId) -> list[Considered]:
        """Return what was considered for a request in the last decision, by value."""
        found = [
            _considered(weighed, number, option)
            for weighed in self._weighed
            for number, option in enumerate(weighed.options)
            if option.prospect.task.request.id == request
        ]
        return sorted(found, key=lambda considered: -considered.value)

    @property
    def solutions(self) -> list[Solution]:
        """Return the solutions of the last decision's programs."""
        return [weighed.solution for weighed in self._weighed]

    def bound(self) -> float:
        """Return what no choice could exceed in the last decision's programs, by relaxation.

        Of one undivided program it bounds any decomposition of it. Costs a linear program each.
        """
        return sum(relaxation(weighed.program) for weighed in self._weighed)

    def weigh(
        self, decision: Round, waiting: Sequence[Prospect], budget: Budget | None = None
    ) -> list[Option]:
        """Solve the programs of one class of service; return all options, and launch nothing."""
        budget = budget or Budget(self._limits.budget_s)
        if not any(decision.board.rooms(stage) for stage in {p.stage for p in waiting}):
            return []
        weighed = [
            self._solved(decision, block, budget)
            for block in blocks_of(
                decision, waiting, nodes=self._limits.block_nodes, most=self._limits.block_requests
            )
        ]
        self._weighed += weighed
        return [option for one in weighed for option in one.options]

    def _assign(self, decision: Round, waiting: Sequence[Prospect], budget: Budget) -> set[str]:
        """Launch what the programs of one class start now; return the ids of those tasks."""
        before = len(self._weighed)
        self.weigh(decision, waiting, budget)
        started: set[str] = set()
        for weighed in self._weighed[before:]:
            started |= _carry_out(decision, weighed)
        return started

    def _solved(self, decision: Round, block: Block, budget: Budget) -> _Weighed:
        degrees = {k for prospect in block.prospects for k in prospect.curve.degrees}
        supply = Supply(decision, block.nodes, sorted(degrees), self._limits.later)
        program, options = Program(supply.capacities), list[Option]()
        for group, prospect in enumerate(block.prospects):
            for option in _options(decision, supply, prospect, self._prices):
                run_s = prospect.run_s(option.degree)
                demands = supply.demands(option.kind, option.degree, option.window, run_s)
                program.add(group, option.value, demands)
                options.append(option)
        return _Weighed(options, program, solve(program, budget.left_s))


class _Leftovers:
    """What the program did not start: the same steps as in the greedy starts."""

    def __init__(self, decision: Round, prospects: Sequence[Prospect]) -> None:
        self._decision, self._horizon = decision, Horizon(decision)
        self._preemption = Preemption(decision)
        self._reservations = Reservations(decision, self._horizon)
        self._background_waits = any(p.is_background for p in prospects)

    def treat(self, prospect: Prospect) -> None:
        """Start what the program did not look at; wait, preempt or start late."""
        decision = self._decision
        if prospect.begins and begin(decision, prospect):
            return
        if not start_in_time(decision, prospect) and not start_anyhow(
            decision, prospect, self._horizon, self._preemption
        ):
            self._reservations.consider(prospect, background_waits=self._background_waits)


def _service_of(prospect: Prospect) -> tuple[bool, bool, int]:
    return (prospect.is_elder, prospect.is_background, prospect.task.request.priority)


def _options(decision: Round, supply: Supply, prospect: Prospect, prices: Prices) -> list[Option]:
    """Return what a request could do, in the order in which the greedy starts would try it."""
    worth = Worth(
        prospect,
        reference_s=decision.cost.reference_s(prospect.task.request),
        now_s=decision.now_s,
        relief_s=supply.relief_s,
        prices=prices,
    )
    found: list[Option] = []
    late, curve = prospect.is_background, prospect.curve
    windows = supply.windows[:1] if late else supply.windows
    degrees = (
        sorted(curve.degrees, key=lambda k: (k != curve.cheapest, -k)) if late else curve.degrees
    )
    for (window, start_s), degree in product(enumerate(windows), degrees):
        end_s = start_s + prospect.run_s(degree)
        for kind in supply.open_kinds(prospect, window, degree, end_s):
            load_s = _load_s(decision, prospect, kind)
            finish_s = end_s + load_s + prospect.tail_s
            if late or finish_s <= prospect.deadline_s:
                value = worth.of(degree, start_s=start_s, transfer_s=prospect.lead_s + load_s)
                found.append(Option(prospect, kind, degree, window, start_s, finish_s, value))
    return found


def _load_s(decision: Round, prospect: Prospect, kind: Kind) -> float:
    if prospect.stage not in kind.lacking:
        return 0.0
    return decision.cost.load_s(prospect.stage, from_peer=False)


def _carry_out(decision: Round, weighed: _Weighed) -> set[str]:
    """Launch what a solution starts now, widest first into the fullest room that holds it."""
    picks = [weighed.options[number] for number in weighed.solution.chosen]
    started: set[str] = set()
    for pick in sorted(picks, key=lambda pick: -pick.degree):
        if pick.window == 0:
            room = _best_fit(decision, pick)
            if room is not None:
                _launch(decision, weighed, pick, room)
                started.add(pick.prospect.task.id)
    return started


def _best_fit(decision: Round, pick: Option) -> Room | None:
    idle = decision.board.idle
    open_rooms = [
        (count, room.node, room)
        for room in pick.kind.rooms
        if (count := sum(device in idle for device in room.devices)) >= pick.degree
    ]
    return min(open_rooms, key=lambda entry: entry[:2])[2] if open_rooms else None


def _launch(decision: Round, weighed: _Weighed, pick: Option, room: Room) -> None:
    task, idle = pick.prospect.task, decision.board.idle
    free = sorted(
        (device for device in room.devices if device in idle),
        key=lambda d: (task.stage not in idle[d].resident, d not in task.came_from, d),
    )
    width = 1 if pick.prospect.begins else pick.degree  # the encode goes where there is room
    team = tuple(sorted(free[:width]))
    considered = len(weighed.options)
    due = "late already" if pick.prospect.is_background else "on time"
    why = f"best of {considered} options together, {due}: degree {pick.degree} on node {room.node}"
    decision.launch(task, team, why)
    for held in [n for n, hold in decision.holds.items() if hold.request == task.request.id]:
        del decision.holds[held]


def _considered(weighed: _Weighed, number: int, option: Option) -> Considered:
    return Considered(
        nodes=tuple(room.node for room in option.kind.rooms),
        degree=option.degree,
        start_s=option.start_s,
        finish_s=option.finish_s,
        on_time=option.finish_s <= option.prospect.deadline_s,
        value=option.value,
        chosen=number in weighed.solution.chosen,
    )
