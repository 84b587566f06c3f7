"""Traces that continue across processes, and a monitor that no sampling can blind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import structlog
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_trace_id

from observability import semconv
from observability.monitor import StageMonitor
from observability.otlp import Signal, is_exported
from observability.snapshot import Asked, RequestClass, StageClass
from observability.tracing import StageSpans, build_provider, context_of, traceparent_of

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
KEYS = {semconv.ATTR_MODEL: "m", semconv.ATTR_STAGE: "diffuse", semconv.ATTR_SHAPE: "64x64"}


def run_stage(spans: StageSpans, start_s: float, end_s: float, *, fails: bool = False) -> None:
    span = spans.start("diffuse", TRACEPARENT, start_s, KEYS)
    if fails:
        spans.fail(span, end_s, "worker_lost", "gone")
    else:
        spans.end(span, end_s, {})


def test_a_stage_span_continues_the_stored_trace() -> None:
    exporter = InMemorySpanExporter()
    spans = StageSpans(build_provider(processors=[SimpleSpanProcessor(exporter)]))
    run_stage(spans, 10.0, 12.5)
    [span] = exporter.get_finished_spans()
    assert format_trace_id(span.context.trace_id) == TRACEPARENT.split("-")[1]
    assert (span.start_time, span.end_time) == (10_000_000_000, 12_500_000_000)


def test_a_stage_of_a_batch_links_to_the_traces_of_the_others() -> None:
    exporter = InMemorySpanExporter()
    spans = StageSpans(build_provider(processors=[SimpleSpanProcessor(exporter)]))
    other = TRACEPARENT.replace("0af7", "1111")
    spans.end(spans.start("decode", TRACEPARENT, 1.0, KEYS, beside=[other, None]), 2.0, {})
    [span] = exporter.get_finished_spans()
    linked = [format_trace_id(link.context.trace_id) for link in span.links]
    assert linked == [other.split("-")[1]]


def test_a_traceparent_survives_the_round_trip() -> None:
    tracer = build_provider().get_tracer("t")
    with tracer.start_as_current_span("outer", context=context_of(TRACEPARENT)) as span:
        again = traceparent_of(span)
    assert again is not None
    assert again.split("-")[1] == TRACEPARENT.split("-")[1]


@pytest.mark.parametrize("nonsense", [None, "", "00-zz-zz-01", "x" * 600])
def test_a_malformed_traceparent_begins_a_new_trace(nonsense: str | None) -> None:
    assert context_of(nonsense) == {}


def test_the_monitor_sees_every_span_when_the_exporter_samples_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    monitor = StageMonitor(window_s=100)
    spans = StageSpans(build_provider(processors=[monitor]))
    for second in range(5):
        run_stage(spans, second, second + 2.0, fails=second == 0)
    spans.start("diffuse", TRACEPARENT, 5.0, KEYS)
    [(key, window)] = monitor.snapshot(10.0).classes.items()
    assert key == StageClass(model="m", stage="diffuse", shape="64x64")
    assert (window.started, window.finished, window.failed, window.in_flight) == (6, 5, 1, 1)
    assert window.mean_service_s == pytest.approx(2.0)
    assert window.arrivals_per_s == pytest.approx(0.06)


def test_the_window_forgets_what_is_old_but_not_what_still_runs() -> None:
    monitor = StageMonitor(window_s=10)
    spans = StageSpans(build_provider(processors=[monitor]))
    run_stage(spans, 0.0, 1.0)
    spans.start("diffuse", TRACEPARENT, 2.0, KEYS)
    [window] = monitor.snapshot(100.0).classes.values()
    assert (window.started, window.finished, window.in_flight) == (0, 0, 1)


def test_what_was_asked_for_leaves_the_window_as_it_came() -> None:
    monitor = StageMonitor(window_s=10)
    monitor.requested("m", "64x64", outputs=3, steps=20, at_s=1.0)
    monitor.requested("m", "64x64", outputs=1, steps=40, at_s=6.0)
    key = RequestClass("m", "64x64")
    assert monitor.snapshot(8.0).asked == {key: Asked(outputs=4, mean_steps=25.0)}
    assert monitor.snapshot(12.0).asked == {key: Asked(outputs=1, mean_steps=40.0)}
    assert monitor.snapshot(17.0).asked == {}


def test_more_requests_than_are_kept_push_the_oldest_out() -> None:
    monitor = StageMonitor(window_s=1000, max_events=2)
    for second in range(5):
        monitor.requested("m", "64x64", outputs=1, steps=second, at_s=float(second))
    assert monitor.snapshot(5.0).asked == {
        RequestClass("m", "64x64"): Asked(outputs=2, mean_steps=3.5)
    }


def test_a_monitor_that_never_saw_a_span_says_that_it_is_blind() -> None:
    assert StageMonitor().snapshot(1.0).blind


def test_events_dropped_under_pressure_are_counted() -> None:
    monitor = StageMonitor(window_s=1000, max_events=10)
    spans = StageSpans(build_provider(processors=[monitor]))
    for second in range(20):
        run_stage(spans, second, second + 1.0)
    assert monitor.snapshot(30.0).dropped_events == 30


def test_rates_stay_exact_when_more_happens_than_the_window_can_hold() -> None:
    monitor = StageMonitor(window_s=1000, max_events=100)
    spans = StageSpans(build_provider(processors=[monitor]))
    for second in range(400):
        run_stage(spans, second, second + 0.5)
        monitor.snapshot(second + 1.0)
    snapshot = monitor.snapshot(400.0)
    [window] = snapshot.classes.values()
    assert snapshot.dropped_events == 0
    assert window.arrivals_per_s == pytest.approx(1.0, rel=0.05)


def test_the_trace_file_holds_one_json_span_per_line(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "traces.jsonl"
    provider = build_provider(trace_file=file)
    run_stage(StageSpans(provider), 1.0, 2.0)
    provider.shutdown()
    [line] = file.read_text().splitlines()
    assert json.loads(line)["attributes"][semconv.ATTR_MODEL] == "m"


def run_paces(monitor: StageMonitor, paces_s: list[float]) -> float:
    """Return the drift after executions that took so long, one a second."""
    spans = StageSpans(build_provider(processors=[monitor]))
    for second, pace_s in enumerate(paces_s):
        run_stage(spans, second, second + pace_s)
    [window] = monitor.snapshot(len(paces_s) + 1.0).classes.values()
    return window.drift


def test_drift_rises_when_a_class_becomes_slower() -> None:
    steady = [0.5] * 60
    assert run_paces(StageMonitor(window_s=1000), steady) == pytest.approx(1.0)
    assert run_paces(StageMonitor(window_s=1000), [*steady, *[1.0] * 10]) > 1.4


def test_few_executions_are_no_drift() -> None:
    assert run_paces(StageMonitor(window_s=1000), [0.1, 0.9, 0.1, 0.9]) == 1.0


@pytest.mark.parametrize("signal", list(Signal))
def test_nothing_leaves_the_machine_unless_an_endpoint_is_set(
    monkeypatch: pytest.MonkeyPatch, signal: Signal
) -> None:
    assert not is_exported(signal)
    monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", "http://127.0.0.1:1/v1")
    assert [one for one in Signal if is_exported(one)] == [signal]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    assert all(map(is_exported, Signal))
    monkeypatch.setenv(f"OTEL_{signal}_EXPORTER", "none")
    assert not is_exported(signal)


def test_a_protocol_that_is_not_spoken_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with structlog.testing.capture_logs() as logs:
        assert is_exported(Signal.TRACES)
    assert [(line["event"], line["protocol"]) for line in logs] == [
        ("otlp_protocol_not_spoken", "grpc")
    ]


def test_a_disabled_sdk_is_said_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with structlog.testing.capture_logs() as logs:
        monitor = StageMonitor()
        run_stage(StageSpans(build_provider(processors=[monitor])), 1.0, 2.0)
    assert [(line["event"], line["log_level"]) for line in logs] == [("monitor_is_blind", "error")]
    assert monitor.snapshot(3.0).blind
