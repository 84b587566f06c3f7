"""What the online monitor costs: microseconds a span, and whether 10,000 spans a second get lost.

Spans are made as the engine makes them, on a provider with and without the monitor, in turns; the
difference is the monitor's. Folding is counted too: `snapshot` is called as often as the planner
does. Run as `make bench-monitor`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from observability import semconv
from observability.monitor import StageMonitor
from observability.tracing import StageSpans, build_provider

OUT = Path(__file__).resolve().parents[1] / "results" / "monitor_cost.json"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SHAPES = [f"{64 * width}x{64 * height}" for width in range(1, 9) for height in range(1, 9)]
KINDS = ("encode", "diffuse", "decode")


def attributes(number: int) -> dict[str, Any]:
    """Return what the engine sets when a span starts."""
    return {
        semconv.ATTR_MODEL: "model",
        semconv.ATTR_STAGE: KINDS[number % 3],
        semconv.ATTR_SHAPE: SHAPES[number % len(SHAPES)],
        semconv.ATTR_STEPS: 20,
        semconv.ATTR_QUEUE_WAIT_S: 0.01,
    }


def spans_cost_us(monitor: StageMonitor | None, count: int) -> float:
    """Return CPU microseconds per span, folding included."""
    spans = StageSpans(build_provider(processors=[] if monitor is None else [monitor]))
    began = time.process_time()
    for number in range(count):
        at_s = number / 10_000
        span = spans.start(KINDS[number % 3], TRACEPARENT, at_s, attributes(number))
        spans.end(span, at_s + 0.05, {semconv.ATTR_RUN_S: 0.05})
        if monitor is not None and number % 10_000 == 0:
            monitor.snapshot(at_s)
    if monitor is not None:
        monitor.snapshot(count / 10_000)
    return (time.process_time() - began) / count * 1e6


def sustained(seconds: int, rate: int) -> dict[str, Any]:
    """Make `rate` spans a second in real time, a snapshot each second; return what was lost."""
    monitor = StageMonitor(window_s=seconds + 10.0, max_events=4 * seconds * rate)
    spans = StageSpans(build_provider(processors=[monitor]))
    began, made, snapshot_ms = time.time(), 0, []
    while (now := time.time()) < began + seconds:
        due = int((now - began) * rate)
        for number in range(made, due):
            span = spans.start("diffuse", TRACEPARENT, now, attributes(number))
            spans.end(span, now, {})
        made = max(made, due)
        if len(snapshot_ms) < now - began:
            start = time.perf_counter()
            monitor.snapshot(now)
            snapshot_ms.append(1e3 * (time.perf_counter() - start))
        time.sleep(0.001)
    seen = monitor.snapshot(time.time())
    finished = sum(window.finished for window in seen.classes.values())
    return {
        "seconds": seconds,
        "rate_per_s": made / seconds,
        "made": made,
        "finished_in_snapshot": finished,
        "dropped_events": seen.dropped_events,
        "snapshot_ms_max": max(snapshot_ms),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spans", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    plain, watched = [], []
    for _ in range(args.rounds):
        plain.append(spans_cost_us(None, args.spans))
        watched.append(spans_cost_us(StageMonitor(), args.spans))
    extra = statistics.median(watched) - statistics.median(plain)
    report = {
        "benchmark": "monitor_cost",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "load_average": os.getloadavg(),
        "versions": {
            "python": platform.python_version(),
            "opentelemetry-sdk": version("opentelemetry-sdk"),
        },
        "span_us": {"without_monitor": plain, "with_monitor": watched},
        "monitor_us_per_span": extra,
        "sustained": sustained(args.seconds, 10_000),
    }
    print(f"a span: {statistics.median(plain):.1f} us; the monitor adds {extra:.1f} us (CPU)")
    print(
        "{rate_per_s:.0f} spans/s for {seconds} s: {dropped_events} lost".format(
            **report["sustained"]
        )
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
