"""The span of a job: one try to run it, from its lease to its end, in the trace of the call that made it.

Metrics of jobs are counted from these spans (`observability/span_metrics.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.trace import SpanKind, Status, StatusCode

from observability import semconv
from observability.tracing import context_of

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from opentelemetry.trace import Span, Tracer

    from gateway.jobs.record import Job


def job_span(tracer: Tracer, job: Job, *, now_s: float) -> AbstractContextManager[Span]:
    """Open the span of a job that is begun now, and make it the current one."""
    how = job.request.degraded
    fewer = {} if how is None else {semconv.ATTR_STEPS_WISHED: how.wished_steps}
    return tracer.start_as_current_span(
        semconv.job_span_name(job.request.model),
        context=context_of(job.traceparent),
        kind=SpanKind.INTERNAL,
        attributes={
            semconv.ATTR_OPERATION: semconv.GEN_AI_OPERATION,
            semconv.ATTR_PROVIDER: semconv.SERVICE_NAME,
            semconv.ATTR_REQUEST_MODEL: job.request.model,
            semconv.ATTR_REQUEST_SEED: job.request.seed,
            semconv.ATTR_CHOICE_COUNT: job.request.n,
            semconv.ATTR_OUTPUT_TYPE: job.request.media.modality.value,
            semconv.ATTR_JOB_ID: job.id,
            semconv.ATTR_REQUEST_ID: job.request_id,
            semconv.ATTR_TENANT: job.tenant,
            semconv.ATTR_MODEL: job.request.model,
            semconv.ATTR_ATTEMPT: job.attempts,
            semconv.ATTR_QUEUE_WAIT_S: now_s - job.request.arrival_s,
            semconv.ATTR_STEPS: job.request.steps,
            **fewer,
        },
    )


def mark_completed(span: Span, job: Job, *, now_s: float) -> None:
    """Say whether a job that is complete now met its deadline."""
    is_met = now_s <= job.request.deadline_s
    span.set_attribute(semconv.ATTR_SLO, semconv.SLO_MET if is_met else semconv.SLO_MISSED)


def mark_failed(span: Span, error: Exception) -> None:
    """Say that a try failed, and by which kind of error."""
    kind = type(error).__name__
    span.set_attribute(semconv.ATTR_ERROR_TYPE, kind)
    span.set_status(Status(StatusCode.ERROR, kind))
