"""A dispatcher around one rule: what every baseline has in common.

It keeps the layout of the placement, refuses what can never run, hands the rest to its rule and
passes reports to the cost model. What is decided, and for whom, is the rule's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Protocol

from engine.messages import StageReport
from engine.types import (
    Assignment,
    ClusterView,
    DispatchPlan,
    ModelId,
    PlanId,
    Shape,
    StageKind,
    StageTask,
)
from schedulers.cost import keep
from schedulers.dispatch.board import Layout
from schedulers.dispatch.feasibility import why_impossible
from schedulers.dispatch.knobs import Knobs
from schedulers.dispatch.prospects import Curves
from schedulers.dispatch.round import Round

if TYPE_CHECKING:
    from schedulers.cost import CostModel

# None of our own additions; every degree counts, also one that is hardly faster than its half.
PLAIN = Knobs(
    background=False, preempt=False, scale_up=False, spill=False, prefetch=False, least_gain=1e9
)


class Rule(Protocol):
    """What makes one baseline different from the others."""

    def refusal(self, decision: Round, task: StageTask) -> str | None:
        """Return why this rule can never run a request, though the cluster could."""
        ...

    def decide(self, decision: Round, tasks: Sequence[StageTask]) -> float | None:
        """Launch or hold each of `tasks`; return when to decide again without an event, if ever."""
        ...


class BaselineDispatcher:
    """A `Dispatcher` that follows one rule."""

    def __init__(self, cost: CostModel, rule: Rule, knobs: Knobs = PLAIN) -> None:
        """Decide by `rule`, with what `cost` expects."""
        self._cost, self._rule, self._knobs = cost, rule, knobs
        self._curves = Curves(cost, knobs.least_gain, knobs.most_waste)
        self._layout: tuple[object, Layout] | None = None
        self._refusals: dict[tuple[ModelId, Shape], str | None] = {}
        self._ids = count(1)

    def plan(self, ready: Sequence[StageTask], view: ClusterView) -> DispatchPlan:
        """Refuse what cannot run, and let the rule place the rest."""
        layout = self._layout_of(view)
        decision = Round(view, layout, self._cost, self._curves, knobs=self._knobs, holds={})
        possible = [task for task in ready if not self._refused(decision, task)]
        next_s = self._rule.decide(decision, possible)
        return decision.plan(PlanId(next(self._ids)), next_s)

    def observe(self, assignment: Assignment, report: StageReport) -> None:
        """Pass an undisturbed execution on to the cost model."""
        if not report.paused and assignment.task.saved is None:
            self._cost.observe(
                assignment.task, report, degree=assignment.degree, batch=len(assignment.tasks)
            )

    def why_impossible(self, task: StageTask, view: ClusterView) -> str | None:
        """Return why a task's own stage can never run here, or None; changes nothing."""
        layout = self._layout_of(view)
        decision = Round(view, layout, self._cost, self._curves, knobs=self._knobs, holds={})
        return why_impossible(decision, task, (task.stage.kind,))

    def _layout_of(self, view: ClusterView) -> Layout:
        key = (view.placement_version, tuple(device.info.id for device in view.devices))
        if self._layout is None or self._layout[0] != key:
            self._layout = (key, Layout(view))
            self._refusals.clear()
        return self._layout[1]

    def _refused(self, decision: Round, task: StageTask) -> bool:
        """Hold a request as impossible at its first stage if no wait can help it."""
        if task.stage.kind is not StageKind.ENCODE:
            return False
        key = (task.request.model, task.request.shape)
        if key not in self._refusals:
            why = why_impossible(decision, task) or self._rule.refusal(decision, task)
            keep(self._refusals, key, why)
        why = self._refusals[key]
        if why is not None:
            decision.hold(task, why, impossible=True)
        return why is not None
