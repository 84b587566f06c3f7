"""Simulate what docs/benchmarks.md reports: `python -m benchmarks.scheduling.run EXPERIMENT`.

Every cell is written down as soon as it is done; a run that is started again goes on from there.
`all` runs every experiment (hours), `refresh` simulates anew what older code has left, the quickest
first, and `report` writes tables and plots from what is on disk.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

from benchmarks.scheduling.cells import Cell, run_cell
from benchmarks.scheduling.experiments import (
    EXPERIMENTS,
    MODELS,
    QUICK,
    Figures,
    Plan,
    Scope,
    describe,
    plans,
)
from benchmarks.scheduling.refresh import refresh
from benchmarks.scheduling.store import Results


class Runner:
    """Works off plans, several at a time, each in a process of its own."""

    def __init__(self, results: Results, *, jobs: int, trace: Path | None, until: float) -> None:
        """Begin no cell after `until`, in seconds of the monotonic clock."""
        self._results, self._trace, self._until = results, trace, until
        self._lock = threading.Lock()
        self._jobs = jobs
        self._pool = ProcessPoolExecutor(jobs)

    def work_off(self, plans: Iterable[Plan]) -> None:
        """Run all plans to their end."""
        with self._pool, ThreadPoolExecutor(self._jobs) as threads:
            for done in threads.map(self._drive, plans):
                del done

    def _drive(self, plan: Plan) -> None:
        try:
            cell = next(plan)
            while (figures := self._figures(cell)) is not None:
                cell = plan.send(figures)
        except StopIteration:
            pass

    def _figures(self, cell: Cell) -> Figures | None:
        """Return what is known or simulated now; None ends the plan."""
        with self._lock:
            known = self._results.find(cell)
        if known is not None:
            return known.figures
        if time.monotonic() > self._until:
            return None
        try:
            figures = self._pool.submit(run_cell, cell, self._trace).result()
        except Exception as error:  # noqa: BLE001 - one policy that fails must not end the others
            print(f"FAILED {describe(cell)}: {type(error).__name__}: {error}", flush=True)
            return None
        with self._lock:
            self._results.keep(cell, figures)
        print(f"{describe(cell)}: {outcome(figures)}", flush=True)
        return figures


def outcome(figures: Figures) -> str:
    """Return the figures that matter most in a line."""
    if "rho" in figures:
        return f"at most {figures['slo_attainment']:.4f} on time, load {figures['rho']:.3f}"
    return (
        f"on time {figures['slo_attainment']:.4f}, mean {figures['mean_s']:.1f}, "
        f"P95 {figures['p95_s']:.1f}, P99 {figures['p99_s']:.1f}, "
        f"rejected {figures['rejected']}, switches {figures['switches']}, "
        f"loads {figures['loads']}; {figures['decision_ms_p99']:.1f} ms, {figures['cpu_s']:.0f} s"
    )


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", choices=(*EXPERIMENTS, "all", "refresh", "report"))
    parser.add_argument(
        "--experiments",
        nargs="+",
        default=EXPERIMENTS,
        choices=EXPERIMENTS,
        metavar="NAME",
        help="which ones to refresh",
    )
    parser.add_argument("--jobs", type=int, default=1, help="simulations at a time")
    parser.add_argument("--only", nargs="+", default=MODELS, metavar="MODEL")
    parser.add_argument("--policies", nargs="+", default=(), metavar="NAME")
    parser.add_argument("--workloads", nargs="+", default=(), metavar="NAME")
    parser.add_argument("--rates", nargs="+", type=float, default=())
    parser.add_argument("--seeds", nargs="+", type=int, default=())
    parser.add_argument("--trace", type=Path, help="the published CogVideoX trace")
    parser.add_argument("--quick", action="store_true", help="five minutes of it")
    parser.add_argument("--keep-stale", action="store_true", help="reuse results of older code")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin nothing after that")
    return parser.parse_args()


def main() -> int:
    """Run what is asked for."""
    args = arguments()
    if args.experiment == "report":
        from benchmarks.scheduling.report import write_report  # noqa: PLC0415 - needs matplotlib

        write_report()
        return 0
    scope = Scope(
        models=tuple(args.only),
        policies=tuple(args.policies),
        workloads=tuple(args.workloads),
        rates=tuple(args.rates),
        seeds=tuple(args.seeds),
        trace=args.trace is not None,
        quick=args.quick,
    )
    until = time.monotonic() + 60 * args.minutes
    if args.experiment == "refresh":
        refresh(args.experiments, scope, trace=args.trace, until=until)
        return 0
    names = EXPERIMENTS if args.experiment == "all" else (args.experiment,)
    for name in QUICK if args.quick and args.experiment == "all" else names:
        results = Results(name, keep_stale=args.keep_stale)
        runner = Runner(results, jobs=args.jobs, trace=args.trace, until=until)
        runner.work_off(plans(name, scope))
    return 0


if __name__ == "__main__":
    sys.exit(main())
