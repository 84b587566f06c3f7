"""Results on disk: one JSON file per experiment, one line per cell, written after every cell.

A cell that another experiment has simulated with the same code is taken from there.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.scheduling.cells import ROOT, SOURCES, Cell, fingerprint
from schedulers.sim.experiment import versions

RESULTS = ROOT / "benchmarks/scheduling/results"


class Entry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is known of a cell; `revision` is the commit, with `+` if files differed from it."""

    cell: Cell
    figures: dict[str, Any]
    code: str
    revision: str
    date: str


class Results:
    """The cells of one experiment."""

    def __init__(self, experiment: str, *, keep_stale: bool = False) -> None:
        """Read what earlier runs have left, of all experiments."""
        self.experiment, self._keep_stale = experiment, keep_stale
        self._path = RESULTS / f"{experiment}.json"
        self._everywhere: dict[str, Entry] = {}
        for path in sorted(RESULTS.glob("*.json")):
            for key, entry in read(path).items():
                known = self._everywhere.get(key)
                if known is None or known.date < entry.date:
                    self._everywhere[key] = entry
        self.entries = read(self._path)

    def find(self, cell: Cell) -> Entry | None:
        """Return a cell that need not be simulated again; the experiment keeps a copy."""
        entry = self._everywhere.get(cell.key)
        if entry is None or not (self._keep_stale or entry.code == fingerprint(cell.policy)):
            return None
        if self.entries.get(cell.key) != entry:
            self.entries[cell.key] = entry
            self._write()
        return entry

    def keep(self, cell: Cell, figures: dict[str, Any]) -> Entry:
        """Write a result down."""
        entry = Entry(
            cell=cell,
            figures=figures,
            code=fingerprint(cell.policy),
            revision=revision(),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self.entries[cell.key] = self._everywhere[cell.key] = entry
        self._write()
        return entry

    def _write(self) -> None:
        """Write all cells, those that another run has added meanwhile included."""
        self.entries = {**read(self._path), **self.entries}
        head = {"benchmark": f"scheduling/{self.experiment}", "simulated": True, **machine()}
        lines = [
            msgspec.json.encode(self.entries[key], order="deterministic").decode()
            for key in sorted(self.entries)
        ]
        text = json.dumps(head, indent=1)[:-2] + ',\n "cells": [\n' + ",\n".join(lines) + "\n]}\n"
        RESULTS.mkdir(parents=True, exist_ok=True)
        scratch = self._path.with_suffix(".tmp")
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(self._path)


def read(path: Path) -> dict[str, Entry]:
    """Return the cells of a file by key; none if there is no file, or it has no cells."""
    if not path.exists():
        return {}
    cells = json.loads(path.read_text(encoding="utf-8")).get("cells", [])
    entries = msgspec.convert(cells, list[Entry])
    return {entry.cell.key: entry for entry in entries}


def machine() -> dict[str, Any]:
    """Return what a reader needs to judge seconds and milliseconds."""
    return {
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": versions(),
    }


@cache
def revision() -> str:
    """Return the last commit of engine and schedulers, with `+` if files differ from it."""
    commit = _git("log", "-1", "--format=%h", "--abbrev=12", "--", *SOURCES) or "unknown"
    return f"{commit}+" if _git("status", "--porcelain", "--", *SOURCES) else commit


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ("git", *arguments),  # noqa: S607 - whichever git the reader has
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()
