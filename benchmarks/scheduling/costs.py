"""What deciding and simulating cost, in real milliseconds and bytes, as a table and as targets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from benchmarks.scheduling.store import RESULTS
from benchmarks.scheduling.tables import entries, markdown, seconds

LIMITS_MS: Final = (("ilp", 128, 100.0), ("greedy", 128, 10.0), ("ilp", 1024, 1000.0))
FLAT: Final = 0.1


def measured() -> dict[str, Any]:
    """Return what `decision_cost` has written; nothing if it has not run."""
    path = RESULTS / "decision_cost.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def decisions() -> str:
    """Return both solvers on the same random states."""
    report = measured()
    rows = [
        [
            f"{row['states']}, {row['waiting']} pending on {row['gpus']} GPUs",
            row["solver"],
            *(seconds(row["wall_ms"][name]) for name in ("p50", "p99")),
            *(seconds(row["cpu_ms"][name]) for name in ("p50", "p99")),
        ]
        for row in report.get("rows", [])
    ]
    header = ("states", "solver", "P50 ms", "P99 ms", "P50 ms of CPU", "P99 ms of CPU")
    table = markdown(header, rows)
    gap = report.get("blocks_1024_gpus")
    if gap:
        table += (
            f"\n\nIn blocks, the start values of 1,000 pending on 1,024 GPUs are {gap['mean_gap']:.1%} "
            f"below a bound of the undivided program ({gap['max_gap']:.1%} at most, {gap['states']} states)."
        )
    return table


def costs() -> Iterator[tuple[str, str, str, bool]]:
    """Yield targets: what, how much, what was reached, whether that is enough."""
    rows = measured().get("rows", [])
    for solver, gpus, limit_ms in LIMITS_MS:
        found = [row for row in rows if (row["solver"], row["gpus"]) == (solver, gpus)]
        if found:
            worst = max(row["wall_ms"]["p99"] for row in found)
            what = f"one decision ({solver}), {found[0]['waiting']} pending on {gpus} GPUs: P99"
            yield what, f"{limit_ms:g} ms", f"{worst:.0f} ms", worst <= limit_ms
    for entry in entries("scale"):
        memory = entry.figures.get("memory_mib")
        if memory:
            grown = memory[-1] / memory[len(memory) // 4] - 1
            what = "memory over a week of simulated time, from the second day to the last"
            yield what, "flat", f"{grown:+.0%}", grown <= FLAT
