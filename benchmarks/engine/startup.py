"""What a server costs before and between requests: start to first image, and idle use of a core.

Starts `trident serve` with the models that ship, asks for a picture as soon as it can be had, then
leaves it alone, at first until its warm-up is over. Processor seconds are of all its processes, so they mean something on a busy
machine too; wall seconds only on a quiet one. Run as `make bench-startup`. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PATIENCE_S = 300.0
SETTLE_S = (
    30.0  # the first start measures its models when nobody has asked for a second: 5 s of work
)


def family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def processor_s(pids: list[int]) -> float:
    """Return the processor seconds that processes have used so far."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / TICKS_PER_S


def until(client: httpx.Client, began: float) -> float:
    """Draw a picture as soon as the server can; return the seconds since `began`."""
    while time.monotonic() < began + PATIENCE_S:
        try:
            if client.get("/readyz").status_code == httpx.codes.OK:
                body = {"prompt": "a red circle on a blue background", "model": "shapes"}
                client.post("/v1/images/generations", json=body, timeout=PATIENCE_S)
                return time.monotonic() - began
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise SystemExit("The server did not become ready.")


def measure(idle_s: float) -> dict[str, Any]:
    """Start, draw, idle, stop."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "trident"), "serve", "--port", str(port)]
    with tempfile.TemporaryDirectory() as data_dir:
        began = time.monotonic()
        process = subprocess.Popen([*command, "--data-dir", data_dir])
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
                first_image_s = until(client, began)
            pids = family(process.pid)
            spent_s = processor_s(pids)
            time.sleep(SETTLE_S)
            before_s, at = processor_s(pids), time.monotonic()
            time.sleep(idle_s)
            used = (processor_s(pids) - before_s) / (time.monotonic() - at)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    return {
        "first_image_s": first_image_s,
        "processor_s_to_first_image": spent_s,
        "idle_share_of_a_core": used,
        "idle_measured_s": idle_s,
        "processes": len(pids),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--idle-seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/startup.json")
    args = parser.parse_args()
    load = os.getloadavg()
    report = {
        "benchmark": "startup",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "load_average_before": load,
        **measure(args.idle_seconds),
    }
    args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
