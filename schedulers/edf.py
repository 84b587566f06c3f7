"""Earliest deadline first over stages: each ready task, in order, takes the best idle device.

Degree 1. Decode and diffuse tasks of a request keep its deadline, so a request that is nearly
done is not overtaken by one that has just begun unless that one is more urgent.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from engine.messages import StageReport
from engine.types import (
    Assignment,
    ClusterView,
    DeviceView,
    DispatchPlan,
    Held,
    PlanId,
    StageTask,
)
from schedulers.cost import CostModel, Estimate


class EdfDispatcher:
    """A `Dispatcher` that never waits on purpose and never overcommits memory."""

    def __init__(self, cost: CostModel) -> None:
        """Estimate with `cost`, and teach it what is observed."""
        self._cost = cost
        self._ids = count(1)

    def plan(self, ready: Sequence[StageTask], view: ClusterView) -> DispatchPlan:
        """Place tasks in order of deadline, arrival and submission."""
        idle = {device.info.id: device for device in view.devices if device.busy_until_s is None}
        assignments, held = [], []
        for task in sorted(ready, key=lambda task: task.order):
            estimate = self._cost.estimate(task.stage, task.request)
            placed = self._place(task, estimate, list(idle.values()), view)
            if isinstance(placed, Held):
                held.append(placed)
            else:
                assignments.append(placed)
                del idle[placed.team[0]]
        return DispatchPlan(
            id=PlanId(next(self._ids)), assignments=tuple(assignments), held=tuple(held)
        )

    def observe(self, assignment: Assignment, report: StageReport) -> None:
        """Pass a finished execution on to the cost model."""
        self._cost.observe(assignment.task, report)

    def _place(
        self, task: StageTask, estimate: Estimate, idle: list[DeviceView], view: ClusterView
    ) -> Assignment | Held:
        needed = view.weight_bytes[task.stage] + estimate.activation_bytes
        homes = [device for device in view.devices if task.stage in device.desired]
        if len(view.devices) == len(view.configured) and not _any_fits(homes, needed):
            return Held(task, _does_not_fit(task, needed, view), impossible=True)
        candidates = [d for d in idle if task.stage in d.desired and needed <= d.capacity_bytes]
        if not candidates:
            return Held(task, f"waits for one of {len(homes)} devices that hold {task.stage}")
        best = min(
            candidates, key=lambda d: (task.stage not in d.resident, -d.free_bytes, d.info.id)
        )
        return Assignment(
            task=task,
            team=(best.info.id,),
            expected_s=estimate.duration_s,
            activation_bytes=estimate.activation_bytes,
            why=f"earliest deadline; {best.info.id} idle, "
            + ("stage resident" if task.stage in best.resident else "stage must load"),
        )


def _any_fits(devices: Sequence[DeviceView], needed: int) -> bool:
    return any(needed <= device.capacity_bytes for device in devices)


def _does_not_fit(task: StageTask, needed: int, view: ClusterView) -> str:
    largest = max((device.capacity_bytes for device in view.devices), default=0)
    return (
        f"Stage {task.stage} at {task.request.shape} needs {needed >> 20} MiB, but the largest "
        f"device has {largest >> 20} MiB; ask for a smaller size or give devices more memory."
    )
