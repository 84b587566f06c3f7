"""As much of S3's protocol as an object store needs, in memory, on a port of this machine."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class _Bucket(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path)

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        self.send_header("etag", '"e"')
        self.send_header("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_PUT(self) -> None:
        self.objects[self._key()] = self.rfile.read(int(self.headers["content-length"]))
        self._answer(200)

    def do_DELETE(self) -> None:
        self.objects.pop(self._key(), None)
        self._answer(204)

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" in query:
            return self._list(query.get("prefix", [""])[0])
        content = self.objects.get(self._key())
        if content is None:
            return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        if wanted := self.headers.get("range"):
            first, last = (int(n) for n in wanted.removeprefix("bytes=").split("-"))
            span = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
            return self._answer(206, content[first : last + 1], content_range=span)
        return self._answer(200, content)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        """Delete several objects at once."""
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        bucket = self._key().rstrip("/") + "/"
        keys = [unescape(key) for key in re.findall("<Key>(.*?)</Key>", body)]
        for key in keys:
            self.objects.pop(bucket + key, None)
        gone = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        self._answer(200, f"<DeleteResult>{gone}</DeleteResult>".encode())

    def _list(self, prefix: str) -> None:
        bucket = self._key().rstrip("/") + "/"
        found = [k.removeprefix(bucket) for k in self.objects if k.startswith(bucket + prefix)]
        entries = "".join(
            f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>e</ETag><Size>{len(self.objects[bucket + key])}</Size></Contents>"
            for key in found
        )
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        self._answer(200, body.encode(), content_type="application/xml")

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""


@contextmanager
def s3_server() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the endpoint's URL, and its objects by `/bucket/key`."""
    handler = type("Bucket", (_Bucket,), {"objects": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.objects  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
