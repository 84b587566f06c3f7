"""Whether a request can run at all on this deployment: memory and node width, not load."""

from __future__ import annotations

from engine.types import StageKey, StageKind, StageTask
from schedulers.dispatch.prospects import sibling
from schedulers.dispatch.round import Round


def why_impossible(decision: Round, task: StageTask) -> str | None:
    """Return why no degree of some stage fits any node, or None if all stages can run.

    While devices are missing nothing is called impossible: they may come back.
    """
    view = decision.board.view
    if len(view.devices) < len(view.configured):
        return None
    for kind in StageKind:
        stage = sibling(task.stage, kind)
        degrees = decision.curve_of(task).degrees if kind is StageKind.DIFFUSE else (1,)
        if not any(_fits(decision, stage, task, degree) for degree in degrees):
            return _describe(decision, stage, task, degrees)
    return None


def _fits(decision: Round, stage: StageKey, task: StageTask, degree: int) -> bool:
    needed = _needed(decision, stage, task, degree)
    return decision.board.layout.widest(stage, needed, decision.board.view) >= degree


def _needed(decision: Round, stage: StageKey, task: StageTask, degree: int) -> int:
    estimate = decision.cost.estimate(stage, task.request, degree=degree)
    return decision.board.view.weight_bytes[stage] + estimate.activation_bytes


def _describe(decision: Round, stage: StageKey, task: StageTask, degrees: tuple[int, ...]) -> str:
    least = degrees[0]
    needed = min(_needed(decision, stage, task, degree) for degree in degrees)
    largest = max((d.capacity_bytes for d in decision.board.view.devices), default=0)
    widest = decision.board.layout.widest(stage, 0, decision.board.view)
    return (
        f"Stage {stage} at {task.request.shape} needs at least {least} devices of one node with "
        f"{needed >> 20} MiB each; the largest device has {largest >> 20} MiB, and at most "
        f"{widest} devices of a node may run it. Ask for a smaller size."
    )
