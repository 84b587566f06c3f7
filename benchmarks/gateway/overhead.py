"""What the gateway adds to a request: a null engine behind it, and a bare Litestar handler beside it.

Each server runs in a process of its own on one core; a client sends `--requests` calls, 16 at a
time. Three servers: the gateway with SQLite, the gateway's engine called without any gateway by a
handler that decodes the same body (no database), and a handler that answers a constant.

    python -m benchmarks.gateway.overhead --requests 2000 --out benchmarks/results/gateway.json
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
from litestar import Litestar, Request, post

ROOT = Path(__file__).parents[2]
BODY = {"prompt": "a red circle", "model": "shapes", "size": "64x48", "seed": 7}
PATH = "/v1/images/generations"


def gateway() -> Litestar:
    """Return the real app with an engine that answers at once."""
    sys.path.insert(0, str(ROOT))
    from gateway.app import create_app  # noqa: PLC0415 - only in the server's process
    from gateway.settings import Settings  # noqa: PLC0415
    from tests.support.fake_engine import FakeEngine  # noqa: PLC0415

    folder = Path(os.environ["BENCH_FOLDER"])
    return create_app(Settings(models=(), data_dir=folder), engine=FakeEngine())


def without_database() -> Litestar:
    """Return a handler that checks the same body and paints the same picture; keeps nothing."""
    sys.path.insert(0, str(ROOT))
    from gateway.schemas.images import ImageGenerationBody  # noqa: PLC0415
    from gateway.wire import decode  # noqa: PLC0415
    from tests.support.fake_engine import png  # noqa: PLC0415

    @post(PATH, status_code=200)
    async def handler(request: Request[Any, Any, Any]) -> dict[str, Any]:
        decode(await request.body(), ImageGenerationBody)
        content = base64.b64encode(png(64, 48, b"abc")).decode()
        return {"created": int(time.time()), "data": [{"b64_json": content}]}

    return Litestar([handler], logging_config=None)


def bare() -> Litestar:
    """Return a handler that does nothing."""

    @post(PATH, status_code=200, sync_to_thread=False)
    def handler() -> dict[str, str]:
        return {"status": "ok"}

    return Litestar([handler], logging_config=None)


SERVERS = ("gateway", "without_database", "bare")


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def measure(base: str, requests: int, concurrency: int) -> dict[str, Any]:
    """Send `requests` calls, `concurrency` at a time; return latencies in milliseconds."""
    latencies: list[float] = []
    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(base_url=base, limits=limits, timeout=60) as client:
        await ready(client)
        numbers = iter(range(requests))

        async def caller() -> None:
            for _ in numbers:
                began = time.perf_counter()
                response = await client.post(PATH, json=BODY)
                latencies.append((time.perf_counter() - began) * 1000)
                response.raise_for_status()

        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(concurrency)))
        took_s = time.perf_counter() - began
    latencies.sort()
    return {
        "requests_per_s": round(requests / took_s, 1),
        **{f"p{q}_ms": round(latencies[int(len(latencies) * q / 100)], 2) for q in (50, 90, 99)},
    }


async def ready(client: httpx.AsyncClient) -> None:
    """Wait until the server answers a call."""
    async with asyncio.timeout(120):
        while True:
            try:
                if (await client.post(PATH, json=BODY)).is_success:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.2)


def run(server: str, requests: int, concurrency: int) -> dict[str, Any]:
    """Measure one server in a process of its own."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        target = f"benchmarks.gateway.overhead:{server}"
        arguments = ["--interface", "asgi", "--factory", "--port", str(port), "--no-access-log"]
        process = subprocess.Popen(
            [sys.executable, "-m", "granian", *arguments, target],
            cwd=ROOT,
            env={**os.environ, "BENCH_FOLDER": folder, "TRIDENT_LOG_FORMAT": "json"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            return asyncio.run(measure(f"http://127.0.0.1:{port}", requests, concurrency))
        finally:
            process.terminate()
            process.wait(timeout=30)


def main() -> None:
    """Measure all servers and write a report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gateway.json")
    args = parser.parse_args()
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpus": os.cpu_count(), "load": os.getloadavg(), "cpu": platform.processor()},
        "versions": {name: version(name) for name in ("litestar", "granian", "httpx")},
        "requests": args.requests,
        "concurrency": args.concurrency,
        "servers": {s: run(s, args.requests, args.concurrency) for s in SERVERS},
    }
    args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report["servers"], indent=2))


if __name__ == "__main__":
    main()
