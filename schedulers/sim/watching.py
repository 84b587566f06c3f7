"""Wrappers that count, time and tell what an engine's policies do, and change nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.types import Assignment, ClusterView, DispatchPlan, Placement, StageTask
from schedulers.sim.config import RunFacts
from schedulers.sim.summary import percentile

if TYPE_CHECKING:
    from engine.messages import StageReport
    from engine.ports import Dispatcher, Planner
    from observability.snapshot import MonitorSnapshot
    from schedulers.sim.chronicle import Chronicle

MOST_TIMES = 200_000
"""Of the last decisions whose milliseconds are kept: a server decides for months."""


class TimedDispatcher:
    """A dispatcher whose decisions are counted, timed in real milliseconds, and told."""

    def __init__(self, inner: Dispatcher, chronicle: Chronicle) -> None:
        """Time `inner`; tell `chronicle` what it decides and why."""
        self._inner, self._chronicle = inner, chronicle
        self._decisions = 0
        self._decision_ms: deque[float] = deque(maxlen=MOST_TIMES)
        self._pauses = self._resizes = 0

    def plan(self, ready: Sequence[StageTask], view: ClusterView) -> DispatchPlan:
        """Decide, and note how long that took."""
        started = time.perf_counter()
        plan = self._inner.plan(ready, view)
        self._decisions += 1
        self._decision_ms.append(1e3 * (time.perf_counter() - started))
        self._pauses += len(plan.pauses)
        self._resizes += len(plan.resizes)
        self._chronicle.decided(plan, view)
        return plan

    def why_impossible(self, task: StageTask, view: ClusterView) -> str | None:
        """Pass it on."""
        return self._inner.why_impossible(task, view)

    def observe(self, assignment: Assignment, report: StageReport) -> None:
        """Pass it on."""
        self._inner.observe(assignment, report)

    def facts(self, planner: WatchedPlanner, wall_s: float, simulated_s: float) -> RunFacts:
        """Return what was counted."""
        ordered = sorted(self._decision_ms)
        return RunFacts(
            decisions=self._decisions,
            decision_ms_p50=percentile(ordered, 0.5) or 0.0,
            decision_ms_p99=percentile(ordered, 0.99) or 0.0,
            switches_count=planner.switches,
            preemptions=self._pauses,
            resizes=self._resizes,
            wall_s=wall_s,
            simulated_s=simulated_s,
        )


class WatchedPlanner:
    """A planner whose switches are told; the first placement is no switch."""

    def __init__(self, inner: Planner, chronicle: Chronicle) -> None:
        """Watch `inner`."""
        self._inner, self._chronicle = inner, chronicle
        self._placed = False
        self.switches = 0

    def place(self, view: ClusterView, snapshot: MonitorSnapshot | None) -> Placement | None:
        """Pass it on."""
        placement = self._inner.place(view, snapshot)
        if placement is not None:
            self.switches += self._placed and self._chronicle.has_begun
            self._chronicle.placed(placement, is_switch=self._placed)
            self._placed = True
        return placement
