"""Which cells of the benchmarks are simulated anew, in which order, and what is told of them."""

from __future__ import annotations

from types import SimpleNamespace

from benchmarks.scheduling.cells import Cell, fingerprint
from benchmarks.scheduling.experiments import Scope
from benchmarks.scheduling.refresh import difference, stale
from benchmarks.scheduling.store import Entry


def an_entry(seed: int, *, cpu_s: float, code: str = "of yesterday") -> Entry:
    cell = Cell(policy="trident", model="sd3", seed=seed)
    return Entry(cell=cell, figures={"cpu_s": cpu_s}, code=code, revision="r", date="d")


def a_book(*entries: Entry) -> SimpleNamespace:
    return SimpleNamespace(entries={entry.cell.key: entry for entry in entries})


def test_cells_of_older_code_are_taken_once_each_the_quickest_first() -> None:
    slow, quick = an_entry(1, cpu_s=9.0), an_entry(2, cpu_s=1.0)
    current = an_entry(3, cpu_s=0.1, code=fingerprint("trident"))
    assert stale([a_book(slow, current), a_book(slow, quick)], Scope()) == [quick, slow]  # type: ignore[list-item]
    assert stale([a_book(slow, quick)], Scope(seeds=(1,))) == [slow]  # type: ignore[list-item]


def test_seconds_of_the_machine_are_no_change() -> None:
    before = {"slo_attainment": 0.9, "mean_s": 2.0, "cpu_s": 1.0}
    assert difference(before, {**before, "cpu_s": 5.0}) == ""
    assert difference(before, {**before, "mean_s": 2.1}) == "mean_s 2.0 to 2.1"
