"""What one decision costs, by the integer program and by the greedy starts, in real milliseconds.

Both decide the same random states: 64 requests pending on 16 nodes of 8, of each model alone and
of all four together, and 1,000 pending on 1,024 devices by decomposition, whose distance from a
bound of the undivided program is told. Prints a table, writes JSON.
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

from schedulers.dispatch.assigned_starts import AssignedStarts, Limits
from schedulers.dispatch.knobs import Knobs
from schedulers.dispatch.starts import start_greedily
from schedulers.dispatch.trident import Starter, TridentDispatcher
from schedulers.sim.mixes import MIXES
from schedulers.sim.states import States

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "benchmarks/scheduling/results/decision_cost.json"
KNOBS = Knobs(considered=1000)
ONE_BLOCK = 128  # devices that one program decides


def time_decisions(
    states: States, start: Starter, *, seeds: int, waiting: int, idle: float
) -> tuple[list[tuple[float, float]], int]:
    """Return wall and CPU milliseconds of one decision per seed, and how many were started."""
    taken_ms, started = list[tuple[float, float]](), 0
    for seed in range(-3, seeds):  # the first three warm up
        state = states.draw(seed, waiting=waiting, idle=idle)
        dispatcher = TridentDispatcher(states.cost, KNOBS, start=start)
        dispatcher.plan((), state.view)  # the layout is kept from one decision to the next
        began, began_cpu = time.perf_counter(), time.thread_time()
        plan = dispatcher.plan(state.waiting, state.view)
        if seed >= 0:
            wall_s, cpu_s = time.perf_counter() - began, time.thread_time() - began_cpu
            taken_ms.append((1e3 * wall_s, 1e3 * cpu_s))
            started += len(plan.assignments)
    return taken_ms, started


def row(
    name: str, models: list[str], *, gpus: int, seeds: int, waiting: int, idle: float
) -> list[dict[str, Any]]:
    """Time both solvers on the same states."""
    states, rows = States(models, gpus=gpus), []
    assigned = AssignedStarts(Limits(budget_s=0.1 * gpus / ONE_BLOCK))
    for solver, start in (("greedy", start_greedily), ("ilp", assigned)):
        taken_ms, started = time_decisions(states, start, seeds=seeds, waiting=waiting, idle=idle)
        rows.append(
            {
                "states": name,
                "solver": solver,
                "gpus": gpus,
                "waiting": waiting,
                "idle_share": idle,
                "decisions": seeds,
                "started": started,
                "wall_ms": percentiles([wall for wall, _ in taken_ms]),
                "cpu_ms": percentiles([cpu for _, cpu in taken_ms]),
            }
        )
    return rows


def percentiles(values: list[float]) -> dict[str, float]:
    """Return median, 99th percentile and maximum."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        "p50": round(statistics.median(ordered), 2),
        "p99": round(ordered[round(0.99 * last)], 2),
        "max": round(ordered[last], 2),
    }


def gap_of_blocks(models: list[str], *, gpus: int, waiting: int, seeds: int) -> dict[str, Any]:
    """Compare the blocks' joint worth with the relaxation of the program that is not divided."""
    states, gaps = States(models, gpus=gpus), []
    for seed in range(seeds):
        state = states.draw(seed, waiting=waiting, idle=0.5)
        starts = AssignedStarts(Limits(budget_s=10.0))
        TridentDispatcher(states.cost, KNOBS, start=starts).plan(state.waiting, state.view)
        worth = sum(solution.worth for solution in starts.solutions)
        whole = AssignedStarts(Limits(budget_s=0.0, block_nodes=10**6, block_requests=10**6))
        TridentDispatcher(states.cost, KNOBS, start=whole).plan(state.waiting, state.view)
        bound = whole.bound()
        gaps.append((bound - worth) / bound)
    return {"mean_gap": statistics.mean(gaps), "max_gap": max(gaps), "states": seeds}


def environment() -> dict[str, Any]:
    """Return what a reader needs to compare figures."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "load_average": os.getloadavg(),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("highspy", "msgspec", "numpy")},
        },
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    names = [str(name) for name in MIXES]
    mixes = {**{name: [name] for name in names}, "all four": names}
    rows: list[dict[str, Any]] = []
    for name, models in mixes.items():
        rows += row(name, models, gpus=ONE_BLOCK, seeds=args.seeds, waiting=64, idle=0.5)
    rows += row(
        "all four", names, gpus=1024, seeds=max(10, args.seeds // 10), waiting=1000, idle=0.5
    )
    for entry in rows:
        print("{states:>16} {gpus:5} GPUs {waiting:5} waiting {solver:>6} ".format(**entry), end="")
        for clock in ("wall_ms", "cpu_ms"):
            print(clock, "P50 {p50:7.2f}  P99 {p99:7.2f}  ".format(**entry[clock]), end="")
        print()
    blocks = gap_of_blocks(names, gpus=1024, waiting=1000, seeds=5)
    print(f"blocks: {blocks['mean_gap']:.2%} below the bound on average")
    report = {
        "benchmark": "decision_cost", **environment(), "rows": rows, "blocks_1024_gpus": blocks
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
