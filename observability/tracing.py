"""Tracing: our own tracer provider, stage spans made from worker measurements, propagation.

The provider is always ours and always records, whatever `OTEL_TRACES_SAMPLER` says: the sampler
decides what is exported, never what the monitor sees. Nothing leaves the machine unless an OTLP
endpoint is configured by the standard variables.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SimpleSpanProcessor,
)
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import (
    Link,
    NoOpTracer,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceState,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes, AttributeValue

from observability.otlp import Signal, is_exported
from observability.semconv import ATTR_ERROR_TYPE, ENGINE_SCOPE, SERVICE_NAME, stage_span_name

__all__ = ["ENGINE_SCOPE", "StageSpans", "build_provider", "context_of", "traceparent_of"]

_PROPAGATOR = TraceContextTextMapPropagator()
_NS_PER_S = 1_000_000_000
log = structlog.get_logger(__name__)


def build_provider(
    service_name: str = SERVICE_NAME,
    *,
    trace_file: Path | None = None,
    processors: Sequence[SpanProcessor] = (),
) -> TracerProvider:
    """Return a provider that records every span.

    Args:
        service_name: `service.name` unless `OTEL_SERVICE_NAME` overrides it.
        trace_file: append every span as one JSON line, for a look without a collector.
        processors: span processors of ours, such as the stage monitor.
    """
    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", service_name)})
    provider = TracerProvider(resource=resource)
    provider.sampler = _RecordAll(provider.sampler)
    for processor in processors:
        provider.add_span_processor(processor)
    if trace_file is not None:
        provider.add_span_processor(SimpleSpanProcessor(_FileExporter(trace_file)))
    if is_exported(Signal.TRACES):
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class _RecordAll(Sampler):
    """Records what another sampler drops, with its attributes; exporters still pass it over.

    The SDK's `AlwaysRecordSampler` keeps the attributes of the dropping sampler's result, which are
    none: the monitor would see that something ran, but not what.
    """

    def __init__(self, root: Sampler) -> None:
        self._root = root

    def should_sample(  # noqa: PLR0917 - the SDK's signature
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        result = self._root.should_sample(
            parent_context, trace_id, name, kind, attributes, links, trace_state
        )
        if result.decision is not Decision.DROP:
            return result
        return SamplingResult(Decision.RECORD_ONLY, attributes, result.trace_state)

    def get_description(self) -> str:
        return f"RecordAll({self._root.get_description()})"


class _FileExporter(ConsoleSpanExporter):
    """Appends one JSON line per span and closes the file when the provider shuts down."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(
            out=open(path, "a", encoding="utf-8", opener=_private),  # noqa: SIM115 - Path.open takes no opener; closed by shutdown
            formatter=lambda span: span.to_json(indent=None) + "\n",
        )

    def shutdown(self) -> None:
        self.out.close()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def traceparent_of(span: Span) -> str | None:
    """Return a span's W3C traceparent, or None if it has no valid context."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
    return carrier.get("traceparent")


def context_of(traceparent: str | None, tracestate: str | None = None) -> Context:
    """Return the context that a stored or received traceparent names; empty for None or nonsense."""
    if not traceparent:
        return Context()
    carrier = {"traceparent": traceparent, "tracestate": tracestate or ""}
    return _PROPAGATOR.extract(carrier, Context())


def _span_context(traceparent: str | None) -> SpanContext | None:
    found = trace.get_current_span(context_of(traceparent)).get_span_context()
    return found if found.is_valid else None


class StageSpans:
    """Makes one span per stage execution, on the engine's scope.

    The engine opens the span when it launches a task and closes it with the worker's report, so
    that every span passes through this process whatever process ran the stage.
    """

    def __init__(self, provider: TracerProvider) -> None:
        """Take the engine's tracer from `provider`; says it loudly if nothing will be recorded."""
        self._tracer = provider.get_tracer(ENGINE_SCOPE)
        if isinstance(self._tracer, NoOpTracer):
            log.error(
                "monitor_is_blind",
                why="OTEL_SDK_DISABLED is set: no span is recorded, so the planner learns nothing "
                "of the workload and keeps its first placement. Unset it; without "
                "OTEL_EXPORTER_OTLP_ENDPOINT nothing leaves this machine anyway.",
            )

    def start(
        self,
        kind: str,
        traceparent: str | None,
        started_s: float,
        attributes: Mapping[str, AttributeValue],
        beside: Iterable[str | None] = (),
    ) -> Span:
        """Open the span of one stage execution that began at `started_s` (Unix seconds).

        `beside` are the traceparents of others in the same batch, to which it links.
        """
        return self._tracer.start_span(
            stage_span_name(kind),
            context=context_of(traceparent),
            start_time=int(started_s * _NS_PER_S),
            attributes=dict(attributes),
            links=[Link(context) for parent in beside if (context := _span_context(parent))],
        )

    def end(self, span: Span, ended_s: float, attributes: Mapping[str, AttributeValue]) -> None:
        """Close a span of an execution that succeeded."""
        span.set_attributes(dict(attributes))
        span.end(int(ended_s * _NS_PER_S))

    def fail(self, span: Span, ended_s: float, error_type: str, message: str) -> None:
        """Close a span of an execution that failed or was cancelled."""
        span.set_attribute(ATTR_ERROR_TYPE, error_type)
        span.set_status(Status(StatusCode.ERROR, message))
        span.end(int(ended_s * _NS_PER_S))
