"""TridentServe's integer program for the diffuse stage, as published (arXiv 2510.02838).

Every request runs now at most once, on one primary type with one degree. On time is worth a flat
1000; late work is worth more the later it is, until it is worth as much. Degrees must be efficient
(t1 / (k t_k) at least .8), unless memory leaves no such choice. An idle device costs 1.

Capacities count devices inside nodes, as in the authors' code. Since degrees divide one another, a
choice fits the nodes exactly if, for every degree, all teams at least as wide fit the nodes' blocks
of that width; so nodes are no variables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from engine.types import ModelId, Shape, StageKind, StageTask
from schedulers.baselines.orders import first_come
from schedulers.baselines.primaries import Primary
from schedulers.cost import EFFICIENT
from schedulers.dispatch.ilp import Demand, Program, solve
from schedulers.dispatch.prospects import sibling
from schedulers.dispatch.round import Round

ON_TIME = 1000.0
LATE = 100.0
LIMIT_S = 1.0  # of real time; the published solver needs about .1 s


class Way(NamedTuple):
    """A primary type, by its place in the list, and a degree."""

    primary: int
    degree: int


class Option(NamedTuple):
    """One way to run a request, and what that is worth."""

    way: Way
    value: float


class Choice(NamedTuple):
    """What the program wants to run now."""

    task: StageTask
    primary: Primary
    degree: int


class Candidate:
    """A pending request with its options, the most valuable first."""

    __slots__ = ("options", "task")

    def __init__(self, task: StageTask, options: Sequence[Option]) -> None:
        """Sort the options."""
        self.task = task
        self.options = tuple(sorted(options, key=lambda o: (-o.value, o.way.degree, o.way)))

    def worth(self, way: Way) -> float:
        """Return what it is worth to run it in a way."""
        return next((option.value for option in self.options if option.way == way), -1.0)

    @property
    def likeness(self) -> tuple[object, ...]:
        """Equal for requests that the program cannot tell from each other."""
        return (self.task.request.model, self.task.request.shape, self.options)


def choose(decision: Round, tasks: Sequence[StageTask], types: Sequence[Primary]) -> list[Choice]:
    """Return what to run now of `tasks`, the widest first."""
    classes: dict[tuple[ModelId, Shape, int], list[StageTask]] = {}
    for task in sorted(tasks, key=lambda task: first_come(decision, task)):
        request = task.request
        classes.setdefault((request.model, request.shape, request.steps), []).append(task)
    candidates = [c for members in classes.values() for c in _candidates(decision, members, types)]
    if not candidates:
        return []
    program, numbered = _program(candidates, types)
    chosen = [numbered[number] for number in solve(program, LIMIT_S).chosen]
    return _first_come(decision, candidates, chosen, types)


def _program(
    candidates: Sequence[Candidate], types: Sequence[Primary]
) -> tuple[Program, list[tuple[Candidate, Option]]]:
    """Return the program, and what each of its options stands for."""
    degrees = sorted({option.way.degree for c in candidates for option in c.options})
    blocks = [Way(i, k) for i in range(len(types)) for k in degrees]
    program = Program(types[i].teams(k) for i, k in blocks)
    numbered: list[tuple[Candidate, Option]] = []
    for group, candidate in enumerate(candidates):
        for option in candidate.options:
            primary, degree = option.way
            demands = [
                Demand(row, degree // block.degree)
                for row, block in enumerate(blocks)
                if block.primary == primary and block.degree <= degree
            ]
            program.add(group, option.value, demands)
            numbered.append((candidate, option))
    return program, numbered


def _candidates(
    decision: Round, members: Sequence[StageTask], types: Sequence[Primary]
) -> list[Candidate]:
    """Return those of a class that the program must look at; the others are worth no more.

    No more of them can run than there is room for at their least degree; so only that many, by
    their worth in each way, can be chosen. Where several are worth the same, the first come.
    """
    efficient = _efficient(decision, members[0], types)
    ways = [way for way in efficient if types[way.primary].teams(way.degree)]
    if not ways:
        return []
    outlook = decision.outlook(members[0])
    best_s = min(outlook.steps * outlook.curve.step_s[way.degree] for way in efficient)
    found = [
        Candidate(task, [_option(decision, task, way, types, best_s) for way in ways])
        for task in members
    ]
    least = min(way.degree for way in ways)
    room = sum(types[i].teams(least) for i in {way.primary for way in ways})
    kept = {i for way in ways for i in _most_worth(found, way)[:room]}
    return [found[i] for i in sorted(kept)]


def _most_worth(candidates: Sequence[Candidate], way: Way) -> list[int]:
    """Return the places of candidates, those first that are worth most in a way."""
    return sorted(range(len(candidates)), key=lambda i: -candidates[i].worth(way))


def _option(
    decision: Round, task: StageTask, way: Way, types: Sequence[Primary], best_s: float
) -> Option:
    """Return what it is worth to run a request now in a way."""
    outlook = decision.outlook(task)
    run_s = outlook.lead_s + outlook.steps * outlook.curve.step_s[way.degree] + outlook.tail_s
    late_s = decision.now_s + run_s - task.request.deadline_s
    reward = ON_TIME
    if late_s > 0:
        reward = min(ON_TIME, LATE * (1.0 + late_s / best_s) + way.degree - 1)
    penalty = types[way.primary].replica_rank(task.stage)
    return Option(way, reward - penalty + way.degree)


def _efficient(decision: Round, task: StageTask, types: Sequence[Primary]) -> list[Way]:
    """Return the ways that memory allows and that are efficient, or the least if none is."""
    fitting = _fitting(decision, task, types, with_role=True)
    fitting = fitting or _fitting(decision, task, types, with_role=False)
    alone_s = decision.step_s(task, 1)
    efficient = [
        way
        for way in fitting
        if alone_s >= EFFICIENT * way.degree * decision.step_s(task, way.degree)
    ]
    least = min((way.degree for way in fitting), default=0)
    return efficient or [way for way in fitting if way.degree == least]


def _fitting(
    decision: Round, task: StageTask, types: Sequence[Primary], *, with_role: bool
) -> list[Way]:
    """Return the ways that memory and nodes allow.

    With `with_role` beside everything that the type should hold, else beside nothing: the engine
    then swaps stages.
    """
    stage = sibling(task.stage, StageKind.DIFFUSE)
    weights = decision.board.view.weight_bytes
    found = []
    for i, primary in enumerate(types):
        if stage in primary.role:
            held = sum(weights[s] for s in primary.role) if with_role else weights[stage]
            for k in decision.curve_of(task).degrees:
                needs = decision.cost.estimate(stage, task.request, degree=k).activation_bytes
                if k <= primary.widest and held + needs <= primary.capacity_bytes:
                    found.append(Way(i, k))
    return found


def _first_come(
    decision: Round,
    candidates: Sequence[Candidate],
    chosen: Sequence[tuple[Candidate, Option]],
    types: Sequence[Primary],
) -> list[Choice]:
    """Give the chosen options to the first of those that the program cannot tell apart."""
    alike: dict[tuple[object, ...], list[Candidate]] = {}
    for candidate in candidates:
        alike.setdefault(candidate.likeness, []).append(candidate)
    choices = []
    for candidate, option in chosen:
        first = alike[candidate.likeness].pop(0)
        choices.append(Choice(first.task, types[option.way.primary], option.way.degree))
    return sorted(choices, key=lambda c: (-c.degree, *first_come(decision, c.task)))
