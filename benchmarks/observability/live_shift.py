"""Records the shift of `shift.py`, live and simulated: `make live-shift`.

Writes both event files, which the console page opens, and what they show beside each other.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from benchmarks.observability import shift
from schedulers.sim.audit import audit
from schedulers.sim.events import SimEvent

RESULTS = Path(__file__).resolve().parents[1] / "results"
LIVE, SIMULATED = "live_shift.jsonl.gz", "live_shift_simulated.jsonl.gz"
FIGURES = "live_shift.json"


def write(path: Path, events: Sequence[SimEvent]) -> None:
    """Write an event file, packed; the same events give the same bytes."""
    lines = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
    path.write_bytes(gzip.compress(lines, mtime=0))


def main() -> None:
    """Run both, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="A folder.")
    out: Path = parser.parse_args().out
    live, simulated = list[SimEvent](), list[SimEvent]()
    with tempfile.TemporaryDirectory() as folder:
        load = os.getloadavg()
        overruns = shift.run_live(Path(folder), live.append)
        shift.run_simulated(Path(folder), simulated.append)
    found = {"live": shift.findings(live), "simulated": shift.findings(simulated)}
    report = {
        "benchmark": "live_shift",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "load_average": load,
        "window_s": shift.WINDOW_S,
        "shift_s": shift.SHIFT_S,
        "launches_slower_than_their_pace": overruns,
        "audit": {"live": audit(live), "simulated": audit(simulated)},
        **{name: msgspec.to_builtins(figures) for name, figures in found.items()},
        "disagreements": shift.disagreements(found["live"], found["simulated"]),
    }
    out.mkdir(parents=True, exist_ok=True)
    write(out / LIVE, live)
    write(out / SIMULATED, simulated)
    (out / FIGURES).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
