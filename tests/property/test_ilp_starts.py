"""Starts by the program: sound teams, nobody twice, the same again, and no worse than greedy."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.types import Assignment, StageKind
from schedulers.dispatch.assigned_starts import AssignedStarts, Limits
from schedulers.dispatch.knobs import Knobs
from schedulers.dispatch.prospects import Prospect
from schedulers.dispatch.round import Round
from schedulers.dispatch.starts import start_greedily
from schedulers.dispatch.trident import TridentDispatcher
from schedulers.sim.states import State, States

PATIENT = Limits(budget_s=10.0)
FORESEEING = Limits(budget_s=10.0, later=(0.5, 1.0))
FEW = States(["cogvideox1.5-5b", "sd3"], gpus=32)
QUIET = Knobs(preempt=False, scale_up=False)
SEEDS = st.integers(0, 10_000)
IDLE = st.sampled_from([0.2, 0.5, 0.9])
SLOW = settings(deadline=None, max_examples=40)


def starts_of(state: State, limits: Limits = PATIENT) -> tuple[Assignment, ...]:
    dispatcher = TridentDispatcher(FEW.cost, QUIET, start=AssignedStarts(limits))
    return dispatcher.plan(state.waiting, state.view).assignments


@SLOW
@given(SEEDS, IDLE, st.integers(1, 24))
def test_teams_are_idle_of_one_node_and_never_shared(seed: int, idle: float, waiting: int) -> None:
    state = FEW.draw(seed, waiting=waiting, idle=idle)
    free = {d.info.id: d.info.node for d in state.view.devices if d.busy_until_s is None}
    launches = starts_of(state)
    taken = [device for launch in launches for device in launch.team]
    assert len(taken) == len(set(taken))
    assert set(taken) <= set(free)
    assert all(len({free[device] for device in launch.team}) == 1 for launch in launches)
    requests = [launch.task.request.id for launch in launches]
    assert len(requests) == len(set(requests))


@SLOW
@given(SEEDS, IDLE)
def test_degrees_are_those_that_memory_allows(seed: int, idle: float) -> None:
    for launch in starts_of(FEW.draw(seed, waiting=20, idle=idle)):
        request = launch.task.request
        assert launch.degree >= FEW.cost.min_degree(request.model, request.shape)
        assert launch.degree in FEW.cost.degrees(request.model)


@SLOW
@given(SEEDS, IDLE)
def test_the_same_state_gives_the_same_starts(seed: int, idle: float) -> None:
    state = FEW.draw(seed, waiting=20, idle=idle)
    assert starts_of(state) == starts_of(state)


class Compare:
    """A starter that lets greedy decide, and the program say what both are worth."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.program, self.greedy, self.bound = 0.0, 0.0, 0.0

    def __call__(self, decision: Round, prospects: Sequence[Prospect]) -> None:
        timely = [p for p in prospects if not p.is_background]
        starts = AssignedStarts(self.limits)
        weighed = starts.weigh(decision, timely)
        self.program = sum(solution.worth for solution in starts.solutions)
        self.bound = starts.bound()
        start_greedily(decision, timely)
        started = {launch.task.id: launch.degree for launch in decision.launches}
        best: dict[str, float] = {}
        for option in weighed:
            task = option.prospect.task.id
            if option.window == 0 and started.get(task) == option.degree:
                best[task] = option.value
        self.greedy = sum(best.values())


@SLOW
@given(SEEDS, IDLE, st.sampled_from([PATIENT, FORESEEING]))
def test_the_program_is_worth_what_greedy_starts_or_more(
    seed: int, idle: float, limits: Limits
) -> None:
    state, compare = FEW.draw(seed, waiting=12, idle=idle), Compare(limits)
    TridentDispatcher(FEW.cost, QUIET, start=compare).plan(state.waiting, state.view)
    assert compare.greedy <= compare.program + 1e-4
    assert compare.program <= compare.bound + 1e-4


@SLOW
@given(SEEDS)
def test_without_time_the_starts_are_still_sound(seed: int) -> None:
    state = FEW.draw(seed, waiting=20)
    launches = starts_of(state, Limits(budget_s=0.0))
    taken = [device for launch in launches for device in launch.team]
    assert len(taken) == len(set(taken))
    assert all(launch.task.stage.kind is StageKind.DIFFUSE for launch in launches)
