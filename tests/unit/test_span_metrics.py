"""Metrics are counted from spans, whatever is exported, with labels that stay bounded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.trace import SpanKind
from prometheus_client.parser import text_string_to_metric_families

from observability import semconv
from observability.meters import Meters
from observability.span_metrics import SpanMetrics
from observability.tracing import StageSpans, build_provider

KEYS = {
    semconv.ATTR_MODEL: "m",
    semconv.ATTR_STAGE: "diffuse",
    semconv.ATTR_DEGREE: 4,
    semconv.ATTR_BATCH: 1,
    semconv.ATTR_QUEUE_WAIT_S: 0.5,
}
DONE = {
    semconv.ATTR_RUN_S: 2.0,
    semconv.ATTR_RESIDENCY: semconv.RESIDENCY_LOAD,
    semconv.ATTR_LOAD_S: 1.5,
    semconv.ATTR_HANDOFF_BYTES: 1000,
    semconv.ATTR_STEPS_DONE: 10,
}


@pytest.fixture
def meters() -> Iterator[Meters]:
    made = Meters()
    yield made
    made.shutdown()


def samples(meters: Meters) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return what a scrape of the page yields, by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(meters.page().decode())
        for sample in family.samples
    }


def value(meters: Meters, name: str, **labels: str) -> float | None:
    return samples(meters).get((name, tuple(sorted(labels.items()))))


def test_a_stage_span_counts_its_duration_team_wait_load_and_hand_off(meters: Meters) -> None:
    spans = StageSpans(build_provider(processors=[SpanMetrics(meters.meter)]))
    spans.end(spans.start("diffuse", None, 10.0, KEYS), 14.0, DONE)
    stage = {"model": "m", "stage": "diffuse"}
    assert value(meters, "tridentserve_stage_duration_seconds_sum", degree="4", **stage) == 2.0
    assert value(meters, "tridentserve_stage_queue_time_seconds_sum", **stage) == 0.5
    assert value(meters, "tridentserve_team_busy_time_seconds_total", **stage) == 16.0
    assert value(meters, "tridentserve_residency_requests_total", outcome="load", **stage) == 1.0
    assert value(meters, "tridentserve_residency_load_duration_seconds_sum", **stage) == 1.5
    assert value(meters, "tridentserve_handoff_io_bytes_total", **stage) == 1000
    assert value(meters, "tridentserve_stage_step_duration_seconds_sum", degree="4", **stage) == 0.2


def test_a_failed_execution_is_busy_time_and_a_retry_but_no_duration(meters: Meters) -> None:
    spans = StageSpans(build_provider(processors=[SpanMetrics(meters.meter)]))
    spans.fail(spans.start("diffuse", None, 1.0, KEYS), 2.0, "worker_lost", "gone")
    stage = {"model": "m", "stage": "diffuse"}
    assert value(meters, "tridentserve_stage_retries_total", outcome="worker_lost", **stage) == 1.0
    assert value(meters, "tridentserve_team_busy_time_seconds_total", **stage) == 4.0
    assert value(meters, "tridentserve_stage_duration_seconds_sum", degree="4", **stage) is None


def test_the_steps_before_a_pause_are_not_counted_again(meters: Meters) -> None:
    spans = StageSpans(build_provider(processors=[SpanMetrics(meters.meter)]))
    resumed = {**KEYS, semconv.ATTR_STEP_FROM: 6}
    spans.end(spans.start("diffuse", None, 0.0, resumed), 2.0, DONE)
    name = "tridentserve_stage_step_duration_seconds_sum"
    assert value(meters, name, model="m", stage="diffuse", degree="4") == 0.5


def test_a_diffuse_that_stopped_at_a_boundary_is_a_pause(meters: Meters) -> None:
    spans = StageSpans(build_provider(processors=[SpanMetrics(meters.meter)]))
    spans.end(spans.start("diffuse", None, 0.0, KEYS), 2.0, {**DONE, semconv.ATTR_PAUSED: True})
    assert value(meters, "tridentserve_stage_pauses_total", model="m", stage="diffuse") == 1.0


def test_a_job_counts_whether_its_deadline_was_met(meters: Meters) -> None:
    processor = SpanMetrics(meters.meter)
    tracer = build_provider(processors=[processor]).get_tracer(semconv.GATEWAY_SCOPE)
    for slo in (semconv.SLO_MET, semconv.SLO_MET, semconv.SLO_MISSED):
        keys = {semconv.ATTR_MODEL: "m", semconv.ATTR_SLO: slo, semconv.ATTR_TENANT: "acme"}
        tracer.start_span("generate_content m", attributes=keys).end()
    assert value(meters, "tridentserve_slo_requests_total", model="m", outcome="met") == 2.0
    assert value(meters, "tridentserve_slo_requests_total", model="m", outcome="missed") == 1.0
    assert value(meters, "tridentserve_tenant_outputs_total", model="m", tenant="acme") == 3.0


def test_a_tenant_beyond_the_first_hundred_is_other(meters: Meters) -> None:
    processor = SpanMetrics(meters.meter)
    tracer = build_provider(processors=[processor]).get_tracer(semconv.GATEWAY_SCOPE)
    for number in range(130):
        keys = {
            semconv.ATTR_MODEL: "m",
            semconv.ATTR_SLO: semconv.SLO_MET,
            semconv.ATTR_TENANT: f"tenant-{number}",
        }
        tracer.start_span("generate_content m", attributes=keys).end()
    assert value(meters, "tridentserve_tenant_outputs_total", model="m", tenant="other") == 30.0


def test_an_answer_of_an_unknown_route_gets_no_label_of_its_own(meters: Meters) -> None:
    tracer = build_provider(processors=[SpanMetrics(meters.meter)]).get_tracer("asgi")
    keys = {semconv.ATTR_HTTP_METHOD: "GET", semconv.ATTR_HTTP_STATUS: 404}
    tracer.start_span("GET", kind=SpanKind.SERVER, attributes=keys).end()
    name = "http_server_request_duration_seconds_count"
    assert value(meters, name, route="unmatched", method="GET", status="404") == 1.0


def test_metrics_do_not_depend_on_what_is_exported(
    meters: Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    spans = StageSpans(build_provider(processors=[SpanMetrics(meters.meter)]))
    spans.end(spans.start("diffuse", None, 0.0, KEYS), 1.0, DONE)
    name = "tridentserve_stage_duration_seconds_count"
    assert value(meters, name, model="m", stage="diffuse", degree="4") == 1.0
