"""A collector process that speaks OTLP over HTTP: what it was sent lies in a file, decoded.

`python tests/support/otlp_collector.py FILE` prints its port and writes a JSON line per span, and
into FILE.metrics one per data point.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue


class Collector(BaseHTTPRequestHandler):
    """Takes spans and metrics; everything else is accepted and dropped."""

    file: Path

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/v1/traces":
            write(self.file, spans_of(body))
        elif self.path == "/v1/metrics":
            write(metrics_file(self.file), points_of(body))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def metrics_file(file: Path) -> Path:
    """Return where the data points lie of a collector that writes spans to `file`."""
    return file.with_name(f"{file.name}.metrics")


def write(file: Path, found: list[dict]) -> None:
    """Append a line for each."""
    with file.open("a", encoding="utf-8") as lines:
        lines.writelines(json.dumps(line) + "\n" for line in found)


def points_of(body: bytes) -> list[dict]:
    """Return the data points of an export request."""
    export = ExportMetricsServiceRequest.FromString(body)
    return [
        {
            "metric": metric.name,
            "labels": {a.key: a.value.string_value for a in point.attributes},
        }
        for resource in export.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in getattr(metric, metric.WhichOneof("data") or "gauge").data_points
    ]


def value_of(value: AnyValue) -> object:
    """Return an attribute's value; None for a kind that we do not write."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(one) for one in value.array_value.values]
    return getattr(value, kind) if kind else None


def spans_of(body: bytes) -> list[dict]:
    """Return the spans of an export request."""
    export = ExportTraceServiceRequest.FromString(body)
    return [
        {
            "trace": span.trace_id.hex(),
            "id": span.span_id.hex(),
            "parent": span.parent_span_id.hex(),
            "name": span.name,
            "start_ns": span.start_time_unix_nano,
            "end_ns": span.end_time_unix_nano,
            "attributes": {pair.key: value_of(pair.value) for pair in span.attributes},
        }
        for resource in export.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


@contextmanager
def running_collector(file: Path) -> Iterator[str]:
    """Run a collector that writes to `file`; yield its endpoint."""
    command = [sys.executable, __file__, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as collector:
        assert collector.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(collector.stdout.readline())}"
        finally:
            collector.kill()


def main() -> None:
    """Serve until killed."""
    Collector.file = Path(sys.argv[1])
    server = HTTPServer(("127.0.0.1", 0), Collector)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
