"""The dispatcher while an engine warms up: the policy's, with warm-ups where it leaves devices idle.

It decides nothing of its own: what is measured, at which degree and batch, is `gateway.warm_up`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from engine.types import Assignment, DeviceId, Held, StageKind

if TYPE_CHECKING:
    from engine.messages import StageReport
    from engine.ports import Dispatcher
    from engine.types import ClusterView, DispatchPlan, StageTask
    from gateway.warm_up import WarmUp
    from schedulers.cost import CostModel

TENANT: Final = "~warm-up"  # no key can have this name


class WarmingDispatcher:
    """Launches warm-ups at their degree and batch, when nothing else is ready."""

    def __init__(self, inner: Dispatcher, cost: CostModel, warm_up: WarmUp) -> None:
        """Decide all else as `inner` does."""
        self._inner, self._cost, self._warm_up = inner, cost, warm_up

    def plan(self, ready: Sequence[StageTask], view: ClusterView) -> DispatchPlan:
        """Let the inner dispatcher plan all else; add a warm-up if that leaves devices idle."""
        mine = [task for task in ready if self._warm_up.owns(task.request)]
        if not mine:
            return self._inner.plan(ready, view)
        others = [task for task in ready if not self._warm_up.owns(task.request)]
        plan = self._inner.plan(others, view)
        launch = None if plan.assignments or plan.held else self._launch(mine, view)
        if launch is not None:
            return msgspec.structs.replace(plan, assignments=(launch,))
        held = tuple(Held(task, "a warm-up waits until nothing else is to do") for task in mine)
        return msgspec.structs.replace(plan, held=(*plan.held, *held))

    def _launch(self, mine: Sequence[StageTask], view: ClusterView) -> Assignment | None:
        point, task = self._warm_up.point, mine[0]
        if point is None or len(mine) < point.batch:
            return None
        width = self._width(point.degree, task)
        estimate = self._cost.estimate(task.stage, task.request, batch=point.batch)
        team = _idle(task, view, estimate.activation_bytes)[:width]
        if len(team) < width:
            return None
        return Assignment(
            task=task,
            riders=tuple(mine[1:]),
            team=team,
            expected_s=estimate.duration_s,
            activation_bytes=estimate.activation_bytes,
            why=f"warm-up: {point.batch} at degree {width}",
        )

    def _width(self, degree: int, task: StageTask) -> int:
        """Return how many devices share the stage: all a diffuse, and a decode that has the parts."""
        kind, request = task.stage.kind, task.request
        if kind is StageKind.DECODE:
            return degree if degree <= self._cost.decode_parts(request.model, request.shape) else 1
        return degree if kind is StageKind.DIFFUSE else 1

    def why_impossible(self, task: StageTask, view: ClusterView) -> str | None:
        """Pass it on."""
        return self._inner.why_impossible(task, view)

    def observe(self, assignment: Assignment, report: StageReport) -> None:
        """Keep what is of a warm-up; it teaches the cost model as a profile, at its end."""
        if assignment.task.request.tenant == TENANT:
            self._warm_up.note(assignment, report)
        else:
            self._inner.observe(assignment, report)


def _idle(task: StageTask, view: ClusterView, activation_bytes: int) -> tuple[DeviceId, ...]:
    """Return the idle devices of one node with the memory, those that hold the stage first."""
    needed = view.weight_bytes[task.stage] + activation_bytes
    idle = [d for d in view.devices if d.busy_until_s is None and d.capacity_bytes >= needed]
    idle.sort(key=lambda d: (d.info.node, task.stage not in d.resident, d.info.id))
    return tuple(d.info.id for d in idle if d.info.node == idle[0].info.node)
