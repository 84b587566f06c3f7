"""Whether a request can run at all on this deployment: memory and node width, not load."""

from __future__ import annotations

from collections.abc import Iterable

from engine.types import StageKey, StageKind, StageTask
from schedulers.dispatch.prospects import sibling
from schedulers.dispatch.round import Round

_PIPELINE = tuple(StageKind)


def why_impossible(
    decision: Round, task: StageTask, kinds: Iterable[StageKind] | None = None
) -> str | None:
    """Return why no degree of some stage fits any node, or None if all can run.

    Looks at the stages of `kinds`, or at the task's own and all that follow. While devices are
    missing nothing is called impossible: they may come back.
    """
    view = decision.board.view
    if view.lacks_devices:
        return None
    for kind in kinds or _PIPELINE[_PIPELINE.index(task.stage.kind) :]:
        stage = sibling(task.stage, kind)
        degrees = decision.curve_of(task).degrees if kind is StageKind.DIFFUSE else (1,)
        if not any(_fits(decision, stage, task, degree) for degree in degrees):
            return _describe(decision, stage, task, degrees)
    return None


def _fits(decision: Round, stage: StageKey, task: StageTask, degree: int) -> bool:
    needed = decision.needed_bytes(stage, task, degree)
    return decision.board.layout.widest(stage, needed, decision.board.view) >= degree


def _describe(decision: Round, stage: StageKey, task: StageTask, degrees: tuple[int, ...]) -> str:
    view, layout = decision.board.view, decision.board.layout
    needed, degree = min((decision.needed_bytes(stage, task, k), k) for k in degrees)
    where = f"each of {degree} devices of one node" if degree > 1 else "one device"
    what = f"Stage {stage} at {task.request.shape} needs {-(-needed >> 20)} MiB on {where}"
    largest = max((device.capacity_bytes for device in view.devices), default=0)
    if needed > largest:
        return (
            f"{what}, but the largest device has {largest >> 20} MiB; ask for a smaller size, or "
            "give each device at least as much memory as that."
        )
    found = layout.widest(stage, needed, view)
    return (
        f"{what}, but no node has more than {found} that may run it and are as large; ask for a "
        "smaller size, or add devices to a node."
    )
