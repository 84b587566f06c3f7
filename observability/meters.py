"""The meter provider: one set of instruments, read by Prometheus' page and, if configured, by OTLP.

Nothing leaves the machine unless an OTLP endpoint is set by the standard variables. The page needs
no exporter thread: it collects when it is asked.
"""

from __future__ import annotations

import os
from typing import Final

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from observability.otlp import Signal, is_exported
from observability.semconv import SERVICE_NAME

__all__ = ["CONTENT_TYPE", "Meters"]

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST


class Meters:
    """A process's instruments and their readers.

    Attributes:
        meter: where instruments are made.
    """

    def __init__(self, service_name: str = SERVICE_NAME) -> None:
        """Begin without instruments; each app of a process has a registry of its own."""
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        readers: list[MetricReader] = [
            PrometheusMetricReader(scope_info_enabled=False, registry=self._registry)
        ]
        if is_exported(Signal.METRICS):
            readers.append(PeriodicExportingMetricReader(OTLPMetricExporter()))
        name = os.environ.get("OTEL_SERVICE_NAME", service_name)
        self._provider = MeterProvider(readers, Resource.create({"service.name": name}))
        self.meter: Meter = self._provider.get_meter(SERVICE_NAME)

    def page(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def shutdown(self) -> None:
        """Export what is left and stop."""
        self._provider.shutdown()
