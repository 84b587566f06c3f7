"""Metrics from spans: what the traces tell of requests, jobs and stages, counted.

A span processor, so there is one source for traces, the online monitor and metrics, and none of
them depends on what is exported. Labels are bounded: a tenant beyond the first hundred is `other`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import SpanKind

from observability import semconv

if TYPE_CHECKING:
    from opentelemetry.metrics import Histogram, Meter
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.util.types import AttributeValue

_NS_PER_S: Final = 1e9
_MOST_TENANTS: Final = 100
_OTHER: Final = "other"
_SHORT_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG_S: Final = (*_SHORT_S[3:], 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1200.0)


class SpanMetrics(SpanProcessor):
    """Folds every ended span into instruments; O(1) and without a lock of its own."""

    def __init__(self, meter: Meter) -> None:
        """Make the instruments."""
        self._http = _histogram(meter, semconv.METRIC_HTTP_DURATION, "HTTP requests", _LONG_S)
        self._jobs = _JobInstruments(meter)
        self._stages = _StageInstruments(meter)

    def on_end(self, span: ReadableSpan) -> None:
        """Count a server, job or stage span; others are passed over."""
        scope = "" if span.instrumentation_scope is None else span.instrumentation_scope.name
        if scope == semconv.ENGINE_SCOPE:
            self._stages.count(span)
        elif scope == semconv.GATEWAY_SCOPE:
            self._jobs.count(span)
        elif span.kind is SpanKind.SERVER:
            self._count_http(span)

    def _count_http(self, span: ReadableSpan) -> None:
        labels = {
            semconv.LABEL_ROUTE: _text(span, semconv.ATTR_HTTP_ROUTE) or "unmatched",
            semconv.LABEL_METHOD: _text(span, semconv.ATTR_HTTP_METHOD),
            semconv.LABEL_STATUS: _text(span, semconv.ATTR_HTTP_STATUS),
        }
        self._http.record(_duration_s(span), labels)


class _JobInstruments:
    """What becomes of jobs: duration, wait, deadline, outputs by tenant."""

    def __init__(self, meter: Meter) -> None:
        self._duration = _histogram(meter, semconv.METRIC_JOB_DURATION, "Jobs, run to end", _LONG_S)
        self._queue = _histogram(meter, semconv.METRIC_JOB_QUEUE, "Jobs before they ran", _LONG_S)
        self._slo = meter.create_counter(
            semconv.METRIC_SLO, description="Finished requests by whether their deadline was met"
        )
        self._outputs = meter.create_counter(
            semconv.METRIC_TENANT_OUTPUTS, description="Pictures and videos made, by tenant"
        )
        self._tenants: set[str] = set()

    def count(self, span: ReadableSpan) -> None:
        model = {semconv.LABEL_MODEL: _text(span, semconv.ATTR_MODEL)}
        error = _text(span, semconv.ATTR_ERROR_TYPE)
        outcome = {semconv.LABEL_OUTCOME: error or semconv.OUTCOME_OK}
        self._duration.record(_duration_s(span), {**model, **outcome})
        self._queue.record(_number(span, semconv.ATTR_QUEUE_WAIT_S), model)
        if slo := _text(span, semconv.ATTR_SLO):
            self._slo.add(1, {**model, semconv.LABEL_OUTCOME: slo})
            tenant = {semconv.LABEL_TENANT: self._bounded(_text(span, semconv.ATTR_TENANT))}
            self._outputs.add(int(_number(span, semconv.ATTR_CHOICE_COUNT, 1)), {**model, **tenant})

    def _bounded(self, tenant: str) -> str:
        if len(self._tenants) < _MOST_TENANTS:
            self._tenants.add(tenant)
        return tenant if tenant in self._tenants else _OTHER


class _StageInstruments:
    """What stage executions take, wait for, load and hand on."""

    def __init__(self, meter: Meter) -> None:
        make = meter.create_counter
        self._duration = _histogram(meter, semconv.METRIC_STAGE_DURATION, "Stage runs", _LONG_S)
        self._queue = _histogram(
            meter, semconv.METRIC_STAGE_QUEUE, "Stages from ready to launched", _LONG_S
        )
        self._load = _histogram(
            meter, semconv.METRIC_LOAD_DURATION, "Weight loads that a stage waited for", _LONG_S
        )
        self._handoff = _histogram(
            meter, semconv.METRIC_HANDOFF_DURATION, "Reading inputs, writing outputs", _SHORT_S
        )
        self._handoff_bytes = make(semconv.METRIC_HANDOFF_BYTES, "By", "Tensors handed on")
        self._busy = make(semconv.METRIC_TEAM_SECONDS, "s", "Device seconds of teams")
        self._residency = make(
            semconv.METRIC_RESIDENCY, description="Stage launches by whether weights were there"
        )
        self._step = _histogram(
            meter, semconv.METRIC_STEP_DURATION, "Denoise steps, mean of an execution", _SHORT_S
        )
        self._retries = make(
            semconv.METRIC_STAGE_RETRIES, description="Executions that failed, by error"
        )
        self._pauses = make(
            semconv.METRIC_STAGE_PAUSES, description="Diffuses stopped at a step boundary"
        )

    def count(self, span: ReadableSpan) -> None:
        labels = {
            semconv.LABEL_MODEL: _text(span, semconv.ATTR_MODEL),
            semconv.LABEL_STAGE: _text(span, semconv.ATTR_STAGE),
        }
        degree = max(1, int(_number(span, semconv.ATTR_DEGREE, 1)))
        batch = max(1, int(_number(span, semconv.ATTR_BATCH, 1)))
        # A launch of several tasks has a span for each: together they are busy once.
        self._busy.add(_duration_s(span) * degree / batch, labels)
        self._queue.record(_number(span, semconv.ATTR_QUEUE_WAIT_S), labels)
        if error := _text(span, semconv.ATTR_ERROR_TYPE):
            self._retries.add(1, {**labels, semconv.LABEL_OUTCOME: error})
            return
        self._count_success(span, labels, degree)

    def _count_success(self, span: ReadableSpan, labels: dict[str, str], degree: int) -> None:
        run_s = _number(span, semconv.ATTR_RUN_S)
        self._duration.record(run_s, {**labels, semconv.LABEL_DEGREE: str(degree)})
        residency = _text(span, semconv.ATTR_RESIDENCY) or semconv.RESIDENCY_HIT
        self._residency.add(1, {**labels, semconv.LABEL_OUTCOME: residency})
        if residency == semconv.RESIDENCY_LOAD:
            self._load.record(_number(span, semconv.ATTR_LOAD_S), labels)
        self._handoff.record(_number(span, semconv.ATTR_HANDOFF_S), labels)
        self._handoff_bytes.add(int(_number(span, semconv.ATTR_HANDOFF_BYTES)), labels)
        steps = _number(span, semconv.ATTR_STEPS_DONE) - _number(span, semconv.ATTR_STEP_FROM)
        if steps > 0:
            self._step.record(run_s / steps, {**labels, semconv.LABEL_DEGREE: str(degree)})
        if _value(span, semconv.ATTR_PAUSED) is True:
            self._pauses.add(1, labels)


def _histogram(meter: Meter, name: str, what: str, bounds_s: tuple[float, ...]) -> Histogram:
    return meter.create_histogram(
        name, "s", f"{what}, in seconds", explicit_bucket_boundaries_advisory=bounds_s
    )


def _duration_s(span: ReadableSpan) -> float:
    if span.start_time is None or span.end_time is None:
        return 0.0
    return (span.end_time - span.start_time) / _NS_PER_S


def _value(span: ReadableSpan, name: str) -> AttributeValue | None:
    return (span.attributes or {}).get(name)


def _text(span: ReadableSpan, name: str) -> str:
    value = _value(span, name)
    return "" if value is None else str(value)


def _number(span: ReadableSpan, name: str, default: float = 0.0) -> float:
    value = _value(span, name)
    return float(value) if isinstance(value, int | float) else default
