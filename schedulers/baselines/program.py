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


class Option(NamedTuple):
    """One way to run a request: a type, a degree, and what that is worth."""

    primary: int
    degree: int
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
        self.options = tuple(sorted(options, key=lambda o: (-o.value, o.degree, o.primary)))


def choose(decision: Round, tasks: Sequence[StageTask], types: Sequence[Primary]) -> list[Choice]:
    """Return what to run now of `tasks`, the widest first."""
    if not any(primary.teams(1) for primary in types):
        return []
    candidates = _reduced(
        [
            _candidate(decision, task, types)
            for task in sorted(tasks, key=lambda t: first_come(decision, t))
        ],
        types,
    )
    rows = {
        (i, k): row
        for row, (i, k) in enumerate(
            (i, k)
            for i in range(len(types))
            for k in sorted({option.degree for c in candidates for option in c.options})
        )
    }
    program = Program(types[i].teams(k) for i, k in rows)
    numbered: list[tuple[Candidate, Option]] = []
    for group, candidate in enumerate(candidates):
        for option in candidate.options:
            demands = [
                Demand(row, option.degree // k)
                for (i, k), row in rows.items()
                if i == option.primary and k <= option.degree
            ]
            program.add(group, option.value, demands)
            numbered.append((candidate, option))
    chosen = [numbered[number] for number in solve(program, LIMIT_S).chosen]
    return _first_come(decision, candidates, chosen, types)


def _candidate(decision: Round, task: StageTask, types: Sequence[Primary]) -> Candidate:
    fitting = _fitting(decision, task, types, with_role=True)
    fitting = fitting or _fitting(decision, task, types, with_role=False)
    efficient = [(i, k) for i, k in fitting if _is_efficient(decision, task, k)]
    if not efficient:
        least = min((k for _i, k in fitting), default=0)
        efficient = [(i, k) for i, k in fitting if k == least]
    outlook = decision.outlook(task)
    best_s = min((outlook.steps * outlook.curve.step_s[k] for _i, k in efficient), default=1.0)
    options = []
    for i, degree in efficient:
        ends_s = decision.now_s + outlook.lead_s + outlook.steps * outlook.curve.step_s[degree]
        late_s = ends_s + outlook.tail_s - task.request.deadline_s
        reward = ON_TIME
        if late_s > 0:
            reward = min(ON_TIME, LATE * (1.0 + late_s / best_s) + degree - 1)
        value = reward - types[i].replica_rank(task.stage) + degree
        options.append(Option(i, degree, value))
    return Candidate(task, options)


def _fitting(
    decision: Round, task: StageTask, types: Sequence[Primary], *, with_role: bool
) -> list[tuple[int, int]]:
    """Return types and degrees that memory and nodes allow.

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
                    found.append((i, k))
    return found


def _is_efficient(decision: Round, task: StageTask, degree: int) -> bool:
    alone_s = decision.step_s(task, 1)
    return alone_s >= EFFICIENT * degree * decision.step_s(task, degree)


def _reduced(candidates: Sequence[Candidate], types: Sequence[Primary]) -> list[Candidate]:
    """Leave out those that cannot be chosen: others of their class are worth as much or more.

    Of a class no more can run than there is room for at its least degree; so only that many need be
    looked at, by their worth for each option.
    """
    classes: dict[tuple[ModelId, Shape], list[Candidate]] = {}
    for candidate in candidates:
        request = candidate.task.request
        classes.setdefault((request.model, request.shape), []).append(candidate)
    kept: list[Candidate] = []
    for members in classes.values():
        ways = {(option.primary, option.degree) for c in members for option in c.options}
        least = min((k for _i, k in ways), default=1)
        room = sum(types[i].teams(least) for i in {i for i, _k in ways})
        wanted: set[int] = set()
        for way in ways:
            ranked = sorted(members, key=lambda c: -_worth(c, way))  # stable: first come first
            wanted.update(id(c) for c in ranked[:room])
        kept += [c for c in members if id(c) in wanted]
    return kept


def _worth(candidate: Candidate, way: tuple[int, int]) -> float:
    return next((o.value for o in candidate.options if (o.primary, o.degree) == way), -1.0)


def _first_come(
    decision: Round,
    candidates: Sequence[Candidate],
    chosen: Sequence[tuple[Candidate, Option]],
    types: Sequence[Primary],
) -> list[Choice]:
    """Give the chosen options to the first of those for which they are worth the same."""
    alike: dict[tuple[object, ...], list[Candidate]] = {}
    for candidate in candidates:
        alike.setdefault(_likeness(candidate), []).append(candidate)
    choices = []
    for candidate, option in chosen:
        first = alike[_likeness(candidate)].pop(0)
        choices.append(Choice(first.task, types[option.primary], option.degree))
    return sorted(choices, key=lambda c: (-c.degree, *first_come(decision, c.task)))


def _likeness(candidate: Candidate) -> tuple[object, ...]:
    request = candidate.task.request
    return (request.model, request.shape, candidate.options)
