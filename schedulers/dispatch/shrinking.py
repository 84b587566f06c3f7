"""Shrinking: when requests queue, running diffuses give back devices that they use wastefully.

They grew, or started wide, while devices were idle. Each shrinks at its next step boundary to the
widest degree that is not wasteful and still on time.
"""

from __future__ import annotations

from engine.types import Resize
from schedulers.dispatch.prospects import Underway
from schedulers.dispatch.round import Round


def shrink(decision: Round) -> None:
    """Ask wasteful diffuses for half of their devices or more, as many as tasks are waiting."""
    if not (decision.knobs.shrink and decision.contended):
        return
    missing = len(decision.held)
    for underway in list(decision.underway):
        if missing <= 0:
            return
        degree = _lean_degree(decision, underway)
        if degree is not None:
            team = underway.view.assignment.team[:degree]
            onward = decision.onward(underway, team, f"shrank to degree {degree}: others wait")
            decision.resizes.append(Resize(underway.task.id, onward))
            decision.underway.remove(underway)
            missing -= underway.degree - degree


def _lean_degree(decision: Round, underway: Underway) -> int | None:
    """Return the widest lean degree below the present one that is on time, if it runs wastefully."""
    curve = underway.curve
    if underway.degree in curve.step_s or underway.left < 1:
        return None
    rest_s = underway.task.request.deadline_s - underway.boundary_s
    rest_s -= decision.tail_s(underway.task) + decision.cost.change_s
    fitting = [
        k
        for k in curve.degrees
        if k < underway.degree and underway.left * curve.step_s[k] <= rest_s
    ]
    return max(fitting, default=None)
