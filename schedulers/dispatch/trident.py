"""The dispatcher that the product runs: stages of requests to teams of devices, at every event.

One decision, in this order: decodes (they finish requests), encodes that have a pool, then in
order of urgency what waits to begin or to diffuse, leftover devices to whoever gains most, and
previews on what is idle even then. Diffuse starts come from a greedy
policy or from an integer program (`solver`); both see the same board.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING

from engine.messages import StageReport
from engine.types import (
    Assignment,
    ClusterView,
    DispatchPlan,
    PlanId,
    Purpose,
    RequestId,
    Shape,
    StageKey,
    StageKind,
    StageTask,
)
from schedulers.cost import keep
from schedulers.dispatch.auxiliary import place_decodes, place_encodes, place_previews
from schedulers.dispatch.board import Layout, Node
from schedulers.dispatch.decoding import widen_decodes
from schedulers.dispatch.fairness import Accounts
from schedulers.dispatch.feasibility import why_impossible
from schedulers.dispatch.growth import scale_up
from schedulers.dispatch.knobs import Knobs
from schedulers.dispatch.merging import merge
from schedulers.dispatch.prefetching import prefetch
from schedulers.dispatch.prospects import Curves, Prospect
from schedulers.dispatch.ranking import Ranking
from schedulers.dispatch.round import Hold, Round
from schedulers.dispatch.sharing import share_decodes, share_steps
from schedulers.dispatch.shrinking import shrink
from schedulers.dispatch.starts import start_greedily

if TYPE_CHECKING:
    from schedulers.cost import CostModel

Starter = Callable[[Round, Sequence[Prospect]], None]


class TridentDispatcher:
    """A `Dispatcher`; its memory between decisions is holds, tenants' accounts and a layout."""

    def __init__(
        self, cost: CostModel, knobs: Knobs | None = None, start: Starter = start_greedily
    ) -> None:
        """Decide with `cost`, and teach it what is observed."""
        self._cost, self._knobs, self._start = cost, knobs or Knobs(), start
        self._curves = Curves(cost, self._knobs.least_gain, self._knobs.most_waste)
        self._accounts = Accounts(self._knobs.weights, self._knobs.fairness_half_life_s)
        self._holds: dict[Node, Hold] = {}
        self._layout: tuple[object, Layout] | None = None
        self._impossible: dict[tuple[StageKey, Shape], str | None] = {}
        self._ids = count(1)

    def plan(self, ready: Sequence[StageTask], view: ClusterView) -> DispatchPlan:
        """Place what can be placed now, change what runs if that helps, and say why."""
        decision = self._begin(view)
        layout = decision.board.layout
        wanted = [task for task in ready if task.purpose is not Purpose.PREVIEW]
        self._drop_stale_holds(wanted, view.now_s)
        possible = [task for task in wanted if not self._refused(decision, task)]
        by_kind = {kind: [t for t in possible if t.stage.kind is kind] for kind in StageKind}
        delays_s = self._accounts.delays_s(
            {task.request.tenant for task in possible}, len(view.devices), view.now_s
        )
        decision.contended = len(possible) > len(decision.board.idle)
        ranking = Ranking(decision, delays_s)
        decodes = ranking.ordered(by_kind[StageKind.DECODE])
        place_decodes(decision, decodes)
        share_decodes(decision, decodes)
        pooled = [t for t in by_kind[StageKind.ENCODE] if layout.pools.get(t.stage)]
        place_encodes(decision, ranking.ordered(pooled))
        beginning = [t for t in by_kind[StageKind.ENCODE] if not layout.pools.get(t.stage)]
        prospects = ranking.prospects([*beginning, *by_kind[StageKind.DIFFUSE]])
        self._start(decision, prospects)
        share_steps(decision, prospects)
        scale_up(decision)
        shrink(decision)
        widen_decodes(decision)
        merge(decision)
        place_previews(decision, [task for task in ready if task.purpose is Purpose.PREVIEW])
        prefetch(decision)
        for launch in decision.launches:
            for task in launch.tasks:
                share_s = launch.degree * launch.until_end_s / len(launch.tasks)
                self._accounts.charge(task.request.tenant, share_s, view.now_s)
        return decision.plan(PlanId(next(self._ids)), self._next_decision_s(view.now_s))

    def observe(self, assignment: Assignment, report: StageReport) -> None:
        """Pass an undisturbed execution on to the cost model."""
        if not report.paused and assignment.task.saved is None:
            self._cost.observe(
                assignment.task, report, degree=assignment.degree, batch=len(assignment.tasks)
            )
            if report.peak_memory_bytes:
                self._impossible.clear()  # what was thought to fit may not

    def _layout_of(self, view: ClusterView) -> Layout:
        key = (view.placement_version, tuple(device.info.id for device in view.devices))
        if self._layout is None or self._layout[0] != key:
            self._layout = (key, Layout(view))
            self._impossible.clear()
        return self._layout[1]

    def _drop_stale_holds(self, ready: Sequence[StageTask], now_s: float) -> None:
        """Forget holds whose request no longer waits, or whose time has passed by a second."""
        if self._holds:
            waiting: set[RequestId] = {task.request.id for task in ready}
            stale = [
                node
                for node, hold in self._holds.items()
                if hold.request not in waiting or (hold.until_s + 1.0 < now_s)
            ]
            for node in stale:
                del self._holds[node]

    def _next_decision_s(self, now_s: float) -> float | None:
        """Decide again when a hold runs out: its request must not wait for another event."""
        return min((max(now_s, h.until_s) + 1.01 for h in self._holds.values()), default=None)

    def why_impossible(self, task: StageTask, view: ClusterView) -> str | None:
        """Return why a task's own stage can never run here, or None; changes nothing."""
        return why_impossible(self._begin(view), task, (task.stage.kind,))

    def _begin(self, view: ClusterView) -> Round:
        return Round(
            view,
            self._layout_of(view),
            self._cost,
            self._curves,
            knobs=self._knobs,
            holds=self._holds,
        )

    def _refused(self, decision: Round, task: StageTask) -> bool:
        """Hold a task as impossible if no wait can help its request."""
        key = (task.stage, task.request.shape)
        if key not in self._impossible:
            keep(self._impossible, key, why_impossible(decision, task))
        why = self._impossible[key]
        if why is not None:
            decision.hold(task, why, impossible=True)
        return why is not None
