"""Why stages are launched, stopped or wait, as events: each reason once, not at every decision.

A stage may wait for hundreds of decisions, so a reason is told when it is another one than the last
told of that stage. Numbers do not make another reason: an estimate changes with every second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from engine.types import Assignment, DispatchPlan, NodeId, Purpose, RequestId, StageKind, StageTask
from schedulers.sim.events import DecideEvent

if TYPE_CHECKING:
    from engine.types import ClusterView, TaskId

MOST_WAITS: Final = 16
"""Reasons to wait that are told of one request; launches are always told."""
_WITHOUT_DIGITS: Final = str.maketrans("", "", "0123456789.")


class Reasons:
    """Turns plans into events.

    Args:
        names: what a task's outputs are called in events.
    """

    def __init__(self, names: Callable[[StageTask], tuple[RequestId, ...]]) -> None:
        """Begin with nothing told."""
        self._names = names
        self._told: dict[RequestId, dict[NodeId, str]] = {}
        self._waits: dict[RequestId, int] = {}

    def of(self, plan: DispatchPlan, view: ClusterView, now_s: float) -> Iterator[DecideEvent]:
        """Yield what is new in a plan."""
        for launch in plan.assignments:
            yield from self._launched(launch, now_s)
        for held in plan.held:
            if self._is_news(held.task, held.reason):
                yield from self._events(held.task, held.reason, now_s)
        if plan.pauses or plan.resizes:
            yield from self._changes(plan, view, now_s)

    def forget(self, request: RequestId) -> None:
        """Forget what was told of a request that has ended."""
        self._told.pop(request, None)
        self._waits.pop(request, None)

    def _launched(self, launch: Assignment, now_s: float) -> Iterator[DecideEvent]:
        for task in launch.tasks:
            self._told.get(task.request.id, {}).pop(task.node, None)
            yield from self._events(task, launch.why, now_s, launch)
            for leg in launch.then:
                why = f"stays after the {task.stage.kind} of the same launch"
                yield from self._events(task, why, now_s, launch, leg.stage.kind)

    def _changes(
        self, plan: DispatchPlan, view: ClusterView, now_s: float
    ) -> Iterator[DecideEvent]:
        running: dict[TaskId, StageTask] = {
            task.id: task for seen in view.running for task in seen.assignment.tasks
        }
        for pause in plan.pauses:
            if (task := running.get(pause.task)) is not None:
                yield from self._events(task, f"stops at its next step: {pause.why}", now_s)
        for resize in plan.resizes:
            if (task := running.get(resize.task)) is not None:
                yield from self._events(task, resize.onward.why, now_s, resize.onward)

    def _events(
        self,
        task: StageTask,
        why: str,
        now_s: float,
        launch: Assignment | None = None,
        kind: StageKind | None = None,
    ) -> Iterator[DecideEvent]:
        for name in self._names(task):
            yield DecideEvent(
                t=now_s,
                request=name,
                stage=kind or task.stage.kind,
                why=why,
                devices=() if launch is None else launch.team,
            )

    def _is_news(self, task: StageTask, why: str) -> bool:
        """Note the reason; a preview that is not shown is no news."""
        if task.purpose is Purpose.PREVIEW:
            return False
        told = self._told.setdefault(task.request.id, {})
        wording = why.translate(_WITHOUT_DIGITS)
        if told.get(task.node) == wording:
            return False
        told[task.node] = wording
        count = self._waits[task.request.id] = self._waits.get(task.request.id, 0) + 1
        return count <= MOST_WAITS
