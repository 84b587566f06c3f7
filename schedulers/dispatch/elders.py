"""The starvation bound: late requests that have waited so long that they go before all others.

So many at a time as `elders_per_16_nodes` says, the oldest. An elder that waits is looked at first
and keeps a node until it has room there (`reservations`); one that runs is not paused.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.types import StageTask, TaskId
from schedulers.dispatch.round import Round

NODES = 16


def elders(decision: Round, late: Iterable[StageTask]) -> dict[TaskId, StageTask]:
    """Return the oldest of some late tasks that have waited long enough, by id, oldest first."""
    nodes, knobs = len(decision.board.layout.nodes), decision.knobs
    quota = -(-nodes * knobs.elders_per_16_nodes // NODES)
    if not quota:
        return {}
    oldest = sorted(late, key=lambda t: (t.request.arrival_s, t.sequence, t.image_index))
    return {task.id: task for task in oldest[:quota] if _is_old(decision, task)}


def _is_old(decision: Round, task: StageTask) -> bool:
    age_s = decision.now_s - task.request.arrival_s
    return age_s > decision.knobs.elder_age * decision.cost.reference_s(task.request)
