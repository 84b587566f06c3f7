"""What the gateway adds to a request, beside a bare Litestar handler under the same load.

Three servers, each in a process of its own with one worker, as `trident serve` has:

- `gateway`: the whole gateway with SQLite and files, in front of an engine that only waits;
- `without_database`: a handler that decodes the same body and paints the same picture;
- `bare`: a handler that answers a constant;
- `sglang`, with `--sglang PYTHON` (an environment that has SGLang-Diffusion): its HTTP layer in front
  of such an engine (`sglang_layer.py`), two processes. It keeps the file and no job.

Two measurements of each:

- `saturation`: the engine takes no time, `--concurrency` callers ask again at once. Calls per second
  tell what a server can do; latencies would tell nothing (they are concurrency by throughput).
- `overhead`: the engine takes a fixed time. Calls come at random moments, so often that on average
  `--concurrency` of them are in the engine: 160 a second at 100 ms, 32 at 500 ms. Reported is
  latency minus the engine's time: the gateway's work for a call, and its waiting for other calls.

The data folders of all servers are kept until the end: an ext4 without a journal (as in many virtual
machines) spends up to two milliseconds on the next new file while it walks past inodes that were
deleted less than a minute ago. The client sends prepared bytes (`load.py`), so the server is the limit. `cpu_ms_per_call` is
processor time of the server process per call, which hardly depends on what else the machine does.

    python -m benchmarks.gateway.overhead --out benchmarks/results/gateway.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from benchmarks.gateway.load import Load, closed_loop, open_loop, request_of
from benchmarks.gateway.servers import PATH, ROOT

BODY: Final = {
    "prompt": "a red circle",
    "model": "shapes",
    "size": "64x48",
    "seed": 7,
    "response_format": "b64_json",
}
SERVERS: Final = ("gateway", "without_database", "bare")
SGLANG: Final = "sglang"
_SGLANG_PYTHON: Final = "BENCH_SGLANG_PYTHON"
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_START_WITHIN_S: Final = 120
_WARM_UP: Final = 200  # calls


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(server: str, engine_s: float, folder: Path) -> Iterator[tuple[int, int]]:
    """Run a server in a process of its own; yield its port and granian's process id."""
    port = free_port()
    data = tempfile.mkdtemp(dir=folder)
    process = subprocess.Popen(
        _command(server, port),
        cwd=ROOT,
        env={**os.environ, "BENCH_FOLDER": data, "BENCH_ENGINE_S": str(engine_s)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until_open(port)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(timeout=30)


def _command(server: str, port: int) -> list[str]:
    if server == SGLANG:
        return [os.environ[_SGLANG_PYTHON], "benchmarks/gateway/sglang_layer.py", str(port)]
    arguments = ["--interface", "asgi", "--factory", "--port", str(port), "--no-access-log"]
    return [sys.executable, "-m", "granian", *arguments, f"benchmarks.gateway.servers:{server}"]


def wait_until_open(port: int) -> None:
    """Return when somebody listens."""
    deadline_s = time.monotonic() + _START_WITHIN_S
    while time.monotonic() < deadline_s:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    message = f"nobody listens on port {port} after {_START_WITHIN_S} s"
    raise TimeoutError(message)


def cpu_s(pid: int) -> float:
    """Return the processor seconds that a process and its children have taken so far."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    own_s = (int(stat[11]) + int(stat[12])) / _TICKS
    return own_s + sum(cpu_s(int(child)) for child in children)


def saturation(server: str, folder: Path, *, calls: int, concurrency: int) -> dict[str, Any]:
    """Load one server with as many calls as it can take."""

    def drive(port: int, request: bytes, count: int) -> Coroutine[Any, Any, Load]:
        return closed_loop(port, request, calls=count, concurrency=concurrency)

    found, spent_s = measured(server, folder, 0.0, drive, calls)
    return {"calls_per_s": round(found.per_s, 1), "cpu_ms_per_call": _ms(spent_s / calls)}


def overhead(
    server: str, folder: Path, *, calls: int, concurrency: int, engine_s: float
) -> dict[str, Any]:
    """Send calls so that `concurrency` are in the engine on average; what is added to its time?"""

    def drive(port: int, request: bytes, count: int) -> Coroutine[Any, Any, Load]:
        return open_loop(port, request, calls=count, per_s=concurrency / engine_s)

    found, spent_s = measured(server, folder, engine_s, drive, calls)
    return {
        "calls_per_s": round(found.per_s, 1),
        **{f"p{q}_ms": _ms(found.percentile_s(q) - engine_s) for q in (50, 90, 99)},
        "cpu_ms_per_call": _ms(spent_s / calls),
    }


def measured(
    server: str,
    folder: Path,
    engine_s: float,
    drive: Callable[[int, bytes, int], Coroutine[Any, Any, Load]],
    calls: int,
) -> tuple[Load, float]:
    """Drive a server warm, then for the record; return that and the processor seconds it took."""
    with serving(server, engine_s, folder) as (port, pid):
        request = request_of(PATH, json.dumps(BODY).encode(), port)
        asyncio.run(drive(port, request, _WARM_UP))
        before_s = cpu_s(pid)
        found = asyncio.run(drive(port, request, calls))
        return found, cpu_s(pid) - before_s


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)


def _measured(
    servers: Sequence[str], folder: Path, engines_ms: Sequence[float], sizes: Mapping[str, int]
) -> dict[str, Any]:
    found: dict[str, Any] = {"saturation": {s: saturation(s, folder, **sizes) for s in servers}}
    for engine_ms in engines_ms:
        found[f"overhead_engine_{engine_ms:g}_ms"] = {
            server: overhead(server, folder, **sizes, engine_s=engine_ms / 1000)
            for server in servers
        }
    return found


def main() -> None:
    """Measure all servers and write a report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--engine-ms", type=float, nargs="*", default=(100, 500))
    parser.add_argument("--servers", nargs="*", default=SERVERS)
    parser.add_argument("--sglang", metavar="PYTHON", help="a Python that has SGLang-Diffusion")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gateway.json")
    args = parser.parse_args()
    sizes = {"calls": args.calls, "concurrency": args.concurrency}
    if args.sglang:
        os.environ[_SGLANG_PYTHON] = args.sglang
        args.servers = [*args.servers, SGLANG]
    with tempfile.TemporaryDirectory() as folder:
        found = _measured(args.servers, Path(folder), args.engine_ms, sizes)
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpus": os.cpu_count(), "load": os.getloadavg(), "cpu": platform.processor()},
        "versions": {n: version(n) for n in ("litestar", "granian", "sqlalchemy")},
        "means": __doc__,
        **sizes,
        **found,
    }
    args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
