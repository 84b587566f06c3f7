"""Leftover devices for requests that were placed in this decision or already run, most urgent first.

Both GF-DiT and TetriServe end a decision like this. A wider team is taken only if the cost model
says that it is faster.
"""

from __future__ import annotations

import msgspec

from engine.types import Assignment, Resize, StageKind
from schedulers.baselines.allotment import Team
from schedulers.dispatch.prospects import Underway
from schedulers.dispatch.round import Round


def widen_fresh(decision: Round) -> None:
    """Widen what this decision launches, again and again from the most urgent on."""
    fresh = [i for i, a in enumerate(decision.launches) if a.task.stage.kind is StageKind.DIFFUSE]
    fresh.sort(key=lambda i: decision.launches[i].task.order)
    while any(_widen_launch(decision, i) for i in fresh):
        pass


def widen_running(decision: Round) -> None:
    """Widen what runs at its next step boundary, each once, most urgent first."""
    for underway in sorted(decision.underway, key=lambda u: u.task.order):
        _widen_running(decision, underway)


def _widen_launch(decision: Round, index: int) -> bool:
    launch = decision.launches[index]
    team = _wider(decision, launch, launch.task.steps_left, 0.0)
    if team is None:
        return False
    decision.launches[index] = decision.assignment(
        launch.task, team, f"{launch.why}; widened to {len(team)}", launch.riders
    )
    return True


def _widen_running(decision: Round, underway: Underway) -> None:
    launch = underway.view.assignment
    team = _wider(decision, launch, underway.left, decision.cost.change_s)
    if team is not None:
        onward = onward_on(decision, underway, team, f"widened to {len(team)}")
        decision.resizes.append(Resize(underway.task.id, onward))


def _wider(decision: Round, launch: Assignment, steps: int, cost_s: float) -> Team | None:
    """Return a launch's team with the devices that the next faster degree adds, if they are idle."""
    task = launch.task
    degrees = decision.curve_of(task).degrees
    node = decision.board.layout.node_of[launch.team[0]]
    room = decision.board.rooms(task.stage).get(node, [])
    now_s = decision.step_s(task, launch.degree)
    for degree in (k for k in degrees if launch.degree < k <= launch.degree + len(room)):
        if steps * (now_s - decision.step_s(task, degree)) > cost_s:
            more = decision.board.choose(task.stage, node, degree - launch.degree)
            decision.board.take(more)
            return tuple(sorted((*launch.team, *more)))
    return None


def onward_on(decision: Round, underway: Underway, team: Team, why: str) -> Assignment:
    """Return how a running diffuse goes on with another team after its next boundary."""
    onward = decision.assignment(underway.task, team, why)
    left_s = underway.left * decision.step_s(underway.task, len(team)) + decision.cost.change_s
    return msgspec.structs.replace(onward, expected_s=left_s)
