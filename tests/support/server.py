"""A real `trident serve` process on a free port, for tests that talk to it from outside."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

START_TIMEOUT_S = 120


@dataclass
class Server:
    """A running server.

    Attributes:
        url: base URL without a trailing slash; `data_dir` is its only state.
    """

    url: str
    data_dir: Path
    trace_file: Path
    process: subprocess.Popen[bytes]

    def get(self, path: str) -> tuple[int, bytes]:
        """Return status and body of a GET; status 0 if nobody listens."""
        try:
            answer = httpx.get(self.url + path, timeout=10)
        except httpx.TransportError:
            return 0, b""
        return answer.status_code, answer.content

    def wait_ready(self) -> None:
        """Return when /readyz answers 200; raise with its reasons if it never does."""
        deadline = time.monotonic() + START_TIMEOUT_S
        body = b""
        while time.monotonic() < deadline:
            assert self.process.poll() is None, "the server ended while starting"
            status, body = self.get("/readyz")
            if status == 200:
                return
            time.sleep(0.1)
        raise TimeoutError(f"server not ready after {START_TIMEOUT_S} s: {body!r}")

    def wait_gone(self) -> None:
        """Return when neither the server nor its workers live any more."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.worker_pids() or self.get("/healthz")[0]:
            assert time.monotonic() < deadline, "processes outlived the command"
            time.sleep(0.1)

    def worker_pids(self) -> list[int]:
        """Return the process ids of the engine's workers, oldest first."""
        pids = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal()]
        return sorted(pid for pid in pids if self._is_worker(pid))

    def _is_worker(self, pid: int) -> bool:
        try:
            name = Path(f"/proc/{pid}/comm").read_bytes().strip()
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False
        return name == b"trident-worker" and str(self.data_dir).encode() in environment

    def spans(self) -> list[dict]:
        """Return all spans the server has written to its trace file."""
        return [json.loads(line) for line in self.trace_file.read_text().splitlines()]

    def wait_for_span(self, name: str, since: int = 0) -> None:
        """Return when a span of this name was written after the first `since` ones."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not any(span["name"] == name for span in self.spans()[since:]):
            assert time.monotonic() < deadline, f"no span {name!r} appeared"
            time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_server(
    data_dir: Path,
    models: Sequence[Path],
    *,
    env: Mapping[str, str] | None = None,
    flags: Sequence[str] = (),
    stop_with: signal.Signals = signal.SIGTERM,
    log: IO[bytes] | None = None,
) -> Iterator[Server]:
    """Start the server as a user would and stop it afterwards."""
    port = free_port()
    trace_file = data_dir / "traces.jsonl"
    command = [str(Path(sys.executable).parent / "trident"), "serve"]
    for model in models:
        command += ["--model", str(model)]
    command += ["--port", str(port), "--data-dir", str(data_dir)]
    command += ["--trace-file", str(trace_file), "--threads", "1", *flags]
    quiet = {"TRIDENT_WARM_UP_DEGREE": "0"}  # only what a test asks for is in its histories
    surroundings = {**os.environ, **quiet, **(env or {})}
    process = subprocess.Popen(command, env=surroundings, stderr=log, start_new_session=True)
    try:
        yield Server(f"http://127.0.0.1:{port}", data_dir, trace_file, process)
    finally:
        process.send_signal(stop_with)
        process.wait(90)
