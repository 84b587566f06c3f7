"""What the program prefers, what it leaves alone, and what it can say about it."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from engine.types import ClusterView, StageTask
from schedulers.dispatch.assigned_starts import AssignedStarts, Limits
from schedulers.dispatch.board import Layout
from schedulers.dispatch.decomposition import blocks_of
from schedulers.dispatch.ilp import Demand, Outcome, Program, solve
from schedulers.dispatch.knobs import Knobs
from schedulers.dispatch.prospects import Curves
from schedulers.dispatch.round import Hold, Round
from schedulers.dispatch.supply import Supply
from schedulers.dispatch.trident import TridentDispatcher
from schedulers.sim.states import NOW_S, States

PATIENT = Limits(budget_s=10.0)
COG = States(["cogvideox1.5-5b"], gpus=8)
QUIET = Knobs(preempt=False, scale_up=False)


def idle_view(states: States = COG) -> ClusterView:
    return states.draw(1, waiting=0, idle=1.0).view


def waiting(count: int, *, slack: float, states: States = COG) -> list[StageTask]:
    """Requests whose deadline is `slack` seconds after the fastest they could be."""
    tasks = states.draw(7, waiting=count).waiting
    decision = a_round(states)
    return [
        msgspec.structs.replace(
            task,
            request=msgspec.structs.replace(
                task.request, deadline_s=NOW_S + decision.outlook(task).best_s + slack
            ),
        )
        for task in tasks
    ]


def a_round(states: States = COG, holds: dict[str, Hold] | None = None) -> Round:
    view = idle_view(states)
    curves = Curves(states.cost, QUIET.least_gain)
    return Round(view, Layout(view), states.cost, curves, knobs=QUIET, holds=holds or {})


def test_a_late_request_never_displaces_one_that_is_on_time() -> None:
    timely, late = waiting(1, slack=0.1), waiting(12, slack=-500.0)
    starts = AssignedStarts(PATIENT)
    plan = TridentDispatcher(COG.cost, QUIET, start=starts).plan([*late[1:], *timely], idle_view())
    assert plan.assignments[0].task == timely[0]
    assert "on time" in plan.assignments[0].why


def test_a_higher_priority_is_served_before_others_are_weighed() -> None:
    tasks = waiting(12, slack=1.0)
    first = tasks[-1]
    request = msgspec.structs.replace(first.request, priority=1)
    tasks[-1] = msgspec.structs.replace(first, request=request)
    plan = TridentDispatcher(COG.cost, QUIET, start=AssignedStarts(PATIENT)).plan(
        tasks, idle_view()
    )
    assert plan.assignments[0].task.id == first.id


def test_what_was_considered_can_be_asked_for_afterwards() -> None:
    tasks, starts = waiting(3, slack=60.0), AssignedStarts(PATIENT)
    plan = TridentDispatcher(COG.cost, QUIET, start=starts).plan(tasks, idle_view())
    launch = plan.assignments[0]
    considered = starts.explain(launch.task.request.id)
    assert [c.degree for c in considered if c.chosen] == [launch.degree]
    assert all(c.on_time and c.finish_s <= launch.task.request.deadline_s for c in considered)
    assert starts.explain(launch.task.request.id) == considered
    assert starts.explain(msgspec.convert("nobody", type(launch.task.request.id))) == []


def test_a_node_held_for_another_request_is_open_only_until_its_time() -> None:
    task = waiting(1, slack=1000.0)[0]
    node = idle_view().devices[0].info.node
    hold = Hold(msgspec.convert("other", type(task.request.id)), node, NOW_S + 1.0)
    decision = a_round(holds={node: hold})
    prospect = decision.prospect(task, late=False)
    starts = AssignedStarts(PATIENT)
    assert starts.weigh(decision, [prospect]) == []
    hold.until_s = NOW_S + 10_000.0
    assert starts.weigh(decision, [prospect])


def test_degrees_that_do_not_divide_one_another_get_a_row_per_room() -> None:
    decision = a_round(States(["cogvideox1.5-5b"], gpus=16))
    nodes = decision.board.layout.nodes
    ladder = Supply(decision, nodes, (1, 2, 4, 8), ())
    counted = Supply(decision, nodes, (2, 3), ())
    assert [len(kind.rooms) for kind in ladder.kinds] == [2]
    assert ladder.capacities == [16, 16, 16, 16]
    assert [len(kind.rooms) for kind in counted.kinds] == [1, 1]
    assert counted.capacities == [8, 8]


def test_a_large_cluster_is_dealt_into_blocks_and_the_rest_waits() -> None:
    states = States(["cogvideox1.5-5b"], gpus=32)
    decision = a_round(states)
    prospects = [decision.prospect(task, late=False) for task in waiting(7, slack=1.0)]
    blocks = blocks_of(decision, prospects, nodes=2, most=3)
    assert [len(block.nodes) for block in blocks] == [2, 2]
    assert [len(block.prospects) for block in blocks] == [3, 3]
    node = blocks[1].nodes[0]
    decision.holds[node] = Hold(prospects[0].task.request.id, node, NOW_S)
    assert prospects[0] in blocks_of(decision, prospects, nodes=2, most=3)[1].prospects


def test_first_fit_that_gives_everyone_the_best_needs_no_solver() -> None:
    program = Program([8])
    program.add(0, 5.0, [Demand(0, 4)])
    program.add(1, 5.0, [Demand(0, 4)])
    assert Outcome.OBVIOUS is solve(program, 1.0).outcome
    program.add(2, 5.0, [Demand(0, 1)])
    assert Outcome.FALLBACK is solve(program, 0.0).outcome
    assert Outcome.OPTIMAL is solve(program, 10.0).outcome


def test_the_solver_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    program = Program([1])
    program.add(0, 1.0, [Demand(0, 1)])
    program.add(1, 2.0, [Demand(0, 1)])
    assert solve(program, 10.0).chosen == (1,)
    assert capfd.readouterr() == ("", "")


def test_policies_are_imported_without_the_solver() -> None:
    code = "import sys, schedulers.policies; print('highspy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
