"""Starts by an integer program: all waiting diffuses are weighed against one another at once.

Requests of one class of service (elders, on time, late; each priority by itself) make a program of
what each could do now or a little later; a class gets what the ones before it left. What the
program does not start is treated as by the greedy starts: it waits, preempts, or takes what there
is. The decision runs on the engine's event loop, so all programs together have a time limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import msgspec

from engine.types import RequestId
from schedulers.dispatch.board import Node
from schedulers.dispatch.decomposition import Block, blocks_of
from schedulers.dispatch.ilp import Budget, Program, Solution, solve
from schedulers.dispatch.objective import Prices, Worth
from schedulers.dispatch.preemption import Preemption
from schedulers.dispatch.prospects import Prospect
from schedulers.dispatch.reservations import Reservations
from schedulers.dispatch.round import Round
from schedulers.dispatch.starts import Horizon, start_anyhow, start_in_time
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
    later: tuple[float, ...] = (0.33, 0.67, 1.0)


class Option(NamedTuple):
    """One thing that a request could do."""

    prospect: Prospect
    kind: Kind
    degree: int
    window: int
    start_s: float
    finish_s: float


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
    """A program with what its options mean."""

    def __init__(self, supply: Supply, options: list[Option], program: Program) -> None:
        self.supply, self.options, self.program = supply, options, program
        self.solution: Solution | None = None


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
        return [weighed.solution for weighed in self._weighed if weighed.solution is not None]

    def _assign(self, decision: Round, waiting: Sequence[Prospect], budget: Budget) -> set[str]:
        """Solve the programs of one class of service; return the ids of the tasks started."""
        if not any(decision.board.rooms(stage) for stage in {p.stage for p in waiting}):
            return set()
        started: set[str] = set()
        for block in blocks_of(
            decision, waiting, nodes=self._limits.block_nodes, most=self._limits.block_requests
        ):
            weighed = self._weigh(decision, block)
            if weighed.program.groups:
                weighed.solution = solve(weighed.program, budget.left_s)
                self._weighed.append(weighed)
                started |= _carry_out(decision, weighed)
        return started

    def _weigh(self, decision: Round, block: Block) -> _Weighed:
        degrees = {k for prospect in block.prospects for k in prospect.curve.degrees}
        supply = Supply(decision, block.nodes, sorted(degrees), self._limits.later)
        program, options = Program(supply.capacities), list[Option]()
        for group, prospect in enumerate(block.prospects):
            worth = Worth(
                prospect,
                reference_s=decision.cost.reference_s(prospect.task.request),
                now_s=decision.now_s,
                prices=self._prices,
            )
            for option in _options(decision, supply, prospect):
                transfer_s = _transfer_s(decision, prospect, option.kind)
                value = worth.of(option.degree, start_s=option.start_s, transfer_s=transfer_s)
                run_s = prospect.run_s(option.degree)
                program.add(
                    group, value, supply.demands(option.kind, option.degree, option.window, run_s)
                )
                options.append(option)
        return _Weighed(supply, options, program)


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
        if not start_in_time(decision, prospect) and not start_anyhow(
            decision, prospect, self._horizon, self._preemption
        ):
            self._reservations.consider(prospect, background_waits=self._background_waits)


def _service_of(prospect: Prospect) -> tuple[bool, bool, int]:
    return (prospect.is_elder, prospect.is_background, prospect.task.request.priority)


def _options(decision: Round, supply: Supply, prospect: Prospect) -> list[Option]:
    """Return what a request could do, in the order in which the greedy starts would try it."""
    found: list[Option] = []
    late, request = prospect.is_background, prospect.task.request.id
    degrees = sorted(prospect.curve.degrees, key=lambda k: (k != prospect.curve.cheapest, -k))
    for window, start_s in enumerate(supply.windows[:1] if late else supply.windows):
        for degree in degrees if late else prospect.curve.degrees:
            end_s = start_s + prospect.run_s(degree)
            for kind in supply.kinds:
                if kind.may_run(prospect) and kind.is_open_to(request, end_s):
                    finish_s = end_s + prospect.tail_s + _load_s(decision, prospect, kind)
                    if late or finish_s <= prospect.deadline_s:
                        found.append(Option(prospect, kind, degree, window, start_s, finish_s))
    return found


def _load_s(decision: Round, prospect: Prospect, kind: Kind) -> float:
    if prospect.stage not in kind.lacking:
        return 0.0
    return decision.cost.load_s(prospect.stage, from_peer=False)


def _transfer_s(decision: Round, prospect: Prospect, kind: Kind) -> float:
    return prospect.lead_s + _load_s(decision, prospect, kind)


def _carry_out(decision: Round, weighed: _Weighed) -> set[str]:
    """Launch what a solution starts now, widest first into the fullest room that holds it."""
    assert weighed.solution is not None
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
    team = tuple(sorted(free[: pick.degree]))
    considered = len(weighed.options)
    due = "late already" if pick.prospect.is_background else "on time"
    why = f"best of {considered} options together, {due}: degree {pick.degree} on node {room.node}"
    decision.launch(task, team, why)
    for held in [n for n, hold in decision.holds.items() if hold.request == task.request.id]:
        del decision.holds[held]


def _considered(weighed: _Weighed, number: int, option: Option) -> Considered:
    solution = weighed.solution
    return Considered(
        nodes=tuple(room.node for room in option.kind.rooms),
        degree=option.degree,
        start_s=option.start_s,
        finish_s=option.finish_s,
        on_time=option.finish_s <= option.prospect.deadline_s,
        value=weighed.program.values[number],
        chosen=solution is not None and number in solution.chosen,
    )
