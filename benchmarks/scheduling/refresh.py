"""Simulate anew what older code has left, the quickest cells first, and say what has changed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

from benchmarks.scheduling.cells import fingerprint, run_cell
from benchmarks.scheduling.experiments import Scope, describe
from benchmarks.scheduling.store import Entry, Results

TOLD: Final = ("slo_attainment", "mean_s", "p95_s", "rejected")
"""Two simulations of a cell are alike if these are; the others follow, or are real seconds."""


def refresh(names: Sequence[str], scope: Scope, *, trace: Path | None, until: float) -> None:
    """Work off the stale cells of these experiments; begin none after `until` (monotonic)."""
    books = [Results(name) for name in names]
    waiting = [old for old in stale(books, scope) if trace or old.cell.workload != "trace"]
    done = changed = 0
    with ProcessPoolExecutor(1) as pool:
        for old in waiting:
            if time.monotonic() > until:
                break
            figures = pool.submit(run_cell, old.cell, trace).result()
            for book in books:
                if old.cell.key in book.entries:
                    book.keep(old.cell, figures)
            done += 1
            changed += (told := difference(old.figures, figures)) != ""
            print(f"{describe(old.cell)}: {told or 'as before'}", flush=True)
    print(f"{done} of {len(waiting)} stale cells simulated anew, {changed} of them changed")


def stale(books: Sequence[Results], scope: Scope) -> list[Entry]:
    """Return the cells that older code has left, each once, the quickest first."""
    found = {
        key: entry
        for book in books
        for key, entry in book.entries.items()
        if entry.code != fingerprint(entry.cell.policy) and scope.takes(entry.cell)
    }
    return sorted(found.values(), key=lambda entry: entry.figures.get("cpu_s", 0.0))


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return what is told of a simulation and has changed; nothing if it is the same."""
    pairs = [(name, before.get(name), after.get(name)) for name in TOLD]
    return ", ".join(f"{name} {old} to {new}" for name, old, new in pairs if old != new)
