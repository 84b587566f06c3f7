"""In which order waiting tasks are looked at: by arrival, or by how little is left to do.

Every order is total: it ends in arrival, submission and output index, never in an id.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.types import StageKind, StageTask
from schedulers.dispatch.prospects import sibling
from schedulers.dispatch.round import Round

Key = tuple[float, ...]
Order = Callable[[Round, StageTask], Key]


def first_come(_decision: Round, task: StageTask) -> Key:
    """First come, first served."""
    return (task.request.arrival_s, task.sequence, task.image_index)


def shortest_first(decision: Round, task: StageTask) -> Key:
    """Shortest remaining time first, at the best degree of the request's size."""
    return (remaining_s(decision, task), *first_come(decision, task))


def earliest_deadline(_decision: Round, task: StageTask) -> Key:
    """Earliest deadline first."""
    return task.order


def remaining_s(decision: Round, task: StageTask) -> float:
    """Return the seconds from the start of a ready task to its artifact on idle devices."""
    left_s = decision.decode_s(task)
    if task.stage.kind is StageKind.DECODE:
        return left_s
    request = task.request
    best = decision.cost.best_degree(request.model, request.shape)
    steps = request.steps - task.steps_done
    left_s += steps * decision.step_s(task, best)
    if task.stage.kind is StageKind.ENCODE:
        left_s += decision.cost.estimate(sibling(task.stage, StageKind.ENCODE), request).duration_s
    return left_s
