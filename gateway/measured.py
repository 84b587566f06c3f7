"""Policies that are watched: what they decide is counted, timed and told, and never changed."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import structlog
from opentelemetry.metrics import CallbackOptions, Observation

from observability import semconv

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter

    from engine.messages import StageReport
    from engine.ports import Dispatcher, Planner
    from engine.types import (
        Assignment,
        ClusterView,
        DeviceId,
        DispatchPlan,
        Placement,
        StageTask,
    )
    from gateway.jobs.state import JobStatus
    from observability.monitor import StageMonitor
    from observability.snapshot import MonitorSnapshot

Listener = Callable[["DispatchPlan", "ClusterView"], None]
_log = structlog.get_logger(__name__)
_DECISION_BUCKETS_S = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0)
_PLANNING_BUCKETS_S = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0)


class MeasuredDispatcher:
    """A dispatcher whose decisions are timed and told to each of `listeners`."""

    def __init__(self, inner: Dispatcher, meter: Meter, listeners: Sequence[Listener]) -> None:
        """Measure `inner`."""
        self._inner, self._listeners = inner, listeners
        self._duration = meter.create_histogram(
            semconv.METRIC_DECISION_DURATION,
            "s",
            "One decision over all ready stages",
            explicit_bucket_boundaries_advisory=_DECISION_BUCKETS_S,
        )
        self._held = meter.create_counter(
            semconv.METRIC_HELD, description="Stages that a decision held back for good, by why"
        )

    def plan(self, ready: Sequence[StageTask], view: ClusterView) -> DispatchPlan:
        """Decide, and note how long that took and what was decided."""
        started = time.perf_counter()
        plan = self._inner.plan(ready, view)
        self._duration.record(time.perf_counter() - started)
        for held in plan.held:
            if held.impossible or held.refused:
                why = "impossible" if held.impossible else "refused"
                self._held.add(1, {semconv.LABEL_OUTCOME: why})
        for listener in self._listeners:
            listener(plan, view)
        return plan

    def why_impossible(self, task: StageTask, view: ClusterView) -> str | None:
        """Pass it on."""
        return self._inner.why_impossible(task, view)

    def observe(self, assignment: Assignment, report: StageReport) -> None:
        """Pass it on."""
        self._inner.observe(assignment, report)


class MeasuredPlanner:
    """A planner whose looks are timed and whose new placements are counted."""

    def __init__(self, inner: Planner, meter: Meter) -> None:
        """Measure `inner`."""
        self._inner = inner
        self._duration = meter.create_histogram(
            semconv.METRIC_PLANNING_DURATION,
            "s",
            "One look at what is asked for, with a new placement or without",
            explicit_bucket_boundaries_advisory=_PLANNING_BUCKETS_S,
        )
        self._replans = meter.create_counter(
            semconv.METRIC_REPLANS, description="Placements that were adopted"
        )

    def place(self, view: ClusterView, snapshot: MonitorSnapshot | None) -> Placement | None:
        """Plan, and note how long that took and whether there is a new placement."""
        started = time.perf_counter()
        placement = self._inner.place(view, snapshot)
        self._duration.record(time.perf_counter() - started)
        if placement is not None:
            self._replans.add(1)
        return placement


class EngineGauges:
    """What an engine holds and does, as of its last decision; readers may be on any thread."""

    def __init__(self, meter: Meter, monitor: StageMonitor) -> None:
        """Begin before any decision."""
        self._view: ClusterView | None = None
        self._launched: frozenset[DeviceId] = frozenset()
        self._monitor = monitor
        make = meter.create_observable_gauge
        make(semconv.METRIC_DEVICES, [self._devices], description="Devices by state")
        make(semconv.METRIC_RESIDENT_BYTES, [self._resident], "By", "Weights on devices, by stage")
        make(semconv.METRIC_MONITOR_BLIND, [self._blind], description="1 if it never saw a span")
        make(semconv.METRIC_MONITOR_DROPPED, [self._dropped], description="Events it lost")

    def decided(self, plan: DispatchPlan, view: ClusterView) -> None:
        """Note what is so after a decision."""
        self._launched = frozenset(device for launch in plan.assignments for device in launch.team)
        self._view = view

    def _devices(self, _: CallbackOptions) -> Iterable[Observation]:
        view, launched = self._view, self._launched
        if view is None:
            return
        busy = sum(d.busy_until_s is not None or d.info.id in launched for d in view.devices)
        states = {
            "busy": busy,
            "idle": len(view.devices) - busy,
            "lost": len(view.configured) - len(view.devices),
        }
        for state, count in states.items():
            yield Observation(count, {semconv.LABEL_STATE: state})

    def _resident(self, _: CallbackOptions) -> Iterable[Observation]:
        view = self._view
        if view is None:
            return
        for stage, size_bytes in view.weight_bytes.items():
            copies = sum(stage in device.resident for device in view.devices)
            labels = {semconv.LABEL_MODEL: stage.model, semconv.LABEL_STAGE: stage.kind.value}
            yield Observation(copies * size_bytes, labels)

    def _blind(self, _: CallbackOptions) -> Iterable[Observation]:
        yield Observation(int(self._monitor.is_blind))

    def _dropped(self, _: CallbackOptions) -> Iterable[Observation]:
        yield Observation(self._monitor.dropped_events)


class AdmissionCounts:
    """What is expected of the jobs that were let in, and why others were not."""

    def __init__(self, meter: Meter) -> None:
        """Make the instruments."""
        self._predicted = meter.create_counter(
            semconv.METRIC_SLO_PREDICTED,
            description="Jobs that were let in, by whether their deadline should be met",
        )
        self._rejected = meter.create_counter(
            semconv.METRIC_REJECTIONS, description="Requests that became no job, by error code"
        )
        self._degraded = meter.create_counter(
            semconv.METRIC_DEGRADED,
            description="Jobs that were let in with fewer denoise steps, to be on time",
        )

    def let_in(self, model: str, *, is_met: bool | None) -> None:
        """Count a new job; None if the cost model knows nothing of such requests yet."""
        outcome = semconv.SLO_UNKNOWN
        if is_met is not None:
            outcome = semconv.SLO_MET if is_met else semconv.SLO_MISSED
        self._predicted.add(1, {semconv.LABEL_MODEL: model, semconv.LABEL_OUTCOME: outcome})

    def degraded(self, model: str) -> None:
        """Count a new job that does fewer denoise steps than its caller wished."""
        self._degraded.add(1, {semconv.LABEL_MODEL: model})

    def rejected(self, code: str) -> None:
        """Count a request; `code` is one of the error codes of the API, never a text."""
        self._rejected.add(1, {semconv.LABEL_REASON: code})


class JobGauge:
    """How many jobs of all processes wait and run; read from the job table when asked to."""

    def __init__(
        self, meter: Meter, census: Callable[[], Awaitable[Mapping[JobStatus, int]]]
    ) -> None:
        """Count with `census`."""
        self._census = census
        self._jobs = meter.create_gauge(semconv.METRIC_JOBS, description="Jobs by state")

    async def refresh(self) -> None:
        """Count anew; a database that does not answer leaves the last counts."""
        try:
            counts = await self._census()
        except Exception as error:  # noqa: BLE001 - whatever it is, the other metrics are still true
            _log.warning("jobs_not_counted", reason=repr(error))
            return
        for status, count in counts.items():
            self._jobs.set(count, {semconv.LABEL_STATE: status.value})
