"""A collector process that speaks OTLP over HTTP: what it was sent lies in a file, decoded.

`python tests/support/otlp_collector.py FILE` prints its port and writes a JSON line per span.
"""

from __future__ import annotations

import gzip
import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector(BaseHTTPRequestHandler):
    """Takes spans; everything else is accepted and dropped."""

    file: Path

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/v1/traces":
            with self.file.open("a", encoding="utf-8") as lines:
                for line in spans_of(body):
                    lines.write(json.dumps(line) + "\n")
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


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
        }
        for resource in export.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def main() -> None:
    """Serve until killed."""
    Collector.file = Path(sys.argv[1])
    server = HTTPServer(("127.0.0.1", 0), Collector)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
