"""The dispatcher's last word on a stage, with what else could have been done and what it costs.

Pure: decisions and a cost model in, `StageDecision`s out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from engine.types import Assignment, StageKind
from gateway.jobs.record import Candidate, StageDecision

if TYPE_CHECKING:
    from engine.types import Decision, GenerationRequest, StageTask
    from schedulers.cost import CostModel

_LONGEST_WHY: Final = 300
_JOB: Final = re.compile(r"job_[0-9a-f]{32}")


def explain(decision: Decision, cost: CostModel, *, now_s: float, devices: int) -> StageDecision:
    """Say what was decided, and what each degree that `devices` allow would take.

    Other jobs are not named: they may be another tenant's.
    """
    task = decision.task
    launch = decision if isinstance(decision, Assignment) else None
    why = decision.why if isinstance(decision, Assignment) else decision.reason
    own = task.request.id
    why = _JOB.sub(lambda job: job[0] if job[0] == own else "another job", why)
    return StageDecision(
        node=task.node,
        stage=task.stage.kind,
        as_of_s=now_s,
        launched=launch is not None,
        why=why[:_LONGEST_WHY],
        devices=() if launch is None else launch.team,
        batch=0 if launch is None else len(launch.tasks),
        expected_s=None if launch is None else launch.expected_s,
        slack_s=_slack_s(task, cost, now_s),
        candidates=_candidates(task, cost, now_s, devices),
    )


def _slack_s(task: StageTask, cost: CostModel, now_s: float) -> float:
    """Return the seconds that the rest of the request could wait without missing its deadline."""
    return task.request.deadline_s - now_s - _at_best_s(task, cost) - _after_s(task, cost)


def _at_best_s(task: StageTask, cost: CostModel) -> float:
    degree = 1
    if task.stage.kind is StageKind.DIFFUSE:
        degree = cost.best_degree(task.stage.model, task.request.shape)
    return _duration_s(task, cost, degree)


def _duration_s(task: StageTask, cost: CostModel, degree: int) -> float:
    whole_s = cost.estimate(task.stage, task.request, degree=degree).duration_s
    if task.stage.kind is not StageKind.DIFFUSE:
        return whole_s
    return whole_s * task.steps_left / task.request.steps


def _after_s(task: StageTask, cost: CostModel) -> float:
    """Return what the stages after a task's own take, each once, at their best degree."""
    kinds = list(StageKind)
    later = kinds[kinds.index(task.stage.kind) + 1 :]
    return sum(_stage_s(kind, task.request, cost) for kind in later)


def _stage_s(kind: StageKind, request: GenerationRequest, cost: CostModel) -> float:
    is_diffuse = kind is StageKind.DIFFUSE
    degree = cost.best_degree(request.model, request.shape) if is_diffuse else 1
    stage = cost.stage(request.model, kind)
    return cost.estimate(stage, request, degree=degree).duration_s


def _candidates(
    task: StageTask, cost: CostModel, now_s: float, devices: int
) -> tuple[Candidate, ...]:
    is_diffuse = task.stage.kind is StageKind.DIFFUSE
    degrees = cost.degrees(task.stage.model) if is_diffuse else (1,)
    left_s = task.request.deadline_s - now_s - _after_s(task, cost)
    found = []
    for degree in degrees:
        if degree <= devices:
            duration_s = _duration_s(task, cost, degree)
            found.append(
                Candidate(
                    degree=degree,
                    expected_s=duration_s,
                    device_s=degree * duration_s,
                    slack_s=left_s - duration_s,
                )
            )
    return tuple(found)
