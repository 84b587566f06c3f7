"""How the orchestrator follows a new mix, and what helps when memory is tight: tables and targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from benchmarks.scheduling.cells import Cell
from benchmarks.scheduling.experiments import policy_name
from benchmarks.scheduling.store import Entry
from benchmarks.scheduling.tables import (
    FIGURES_HEADER,
    NAMES,
    Seeds,
    average,
    entries,
    figures_row,
    grouped,
    markdown,
    seconds,
    share,
    title_of,
)

AUTOMATIC: Final = "by the orchestrator"
WINDOWS: Final = 2
"""After so many a shift has to be followed (`cells.SETTLED_S`)."""


class Share(NamedTuple):
    """A phase over all seeds."""

    requests: int
    on_time: float
    mean_s: float


def shifts() -> str:
    """Return one table per workload: every placement, phase by phase."""
    parts = []
    for title, found in situations().items():
        by_sizing = grouped(found, sizing)
        phases = {name: phases_of(seeds) for name, seeds in by_sizing.items()}
        rows = [row(name, seeds, phases[name]) for name, seeds in by_sizing.items()]
        rows.sort(key=lambda row: (row[0] != AUTOMATIC, row[0]))
        if best := best_of_each(phases):
            rows.insert(
                1, ["best by hand of each phase", "-", *total(best), *map(text, best), "-", "-"]
            )
        names = [f"until {end_s:.0f} s" for end_s in ends_s(found[0])]
        header = ("pools", "seeds", "on time", "mean s", *names, "loads", "switches at s")
        parts += [f"{title} (simulated)", markdown(header, rows)]
    return "\n\n".join(parts) or "Not simulated yet."


def tight() -> str:
    """Return spill and prefetch where they could matter."""
    found = grouped(entries("tight"), lambda cell: (title_of(cell), policy_name(cell)))
    rows = [
        [title, *figures_row(name, seeds), f"{average(seeds, 'loads'):.0f}"]
        for (title, name), seeds in sorted(found.items())
    ]
    return markdown(("where", *FIGURES_HEADER, "loads"), rows)


def situations() -> dict[str, Seeds]:
    """Return the cells of every workload."""
    return grouped(entries("shifts"), title_of)


def sizing(cell: Cell) -> str:
    """Return who sized the placement."""
    if cell.sizes is None:
        return AUTOMATIC
    parts = [f"{cell.sizes['decode']} decode, {cell.sizes['encode']} encode"]
    models = cell.sizes.get("models")
    if isinstance(models, Mapping):
        parts = [f"{count} {NAMES[model]}" for model, count in models.items()] + parts
    return ", ".join(parts)


def row(name: str, seeds: Seeds, phases: Sequence[Share]) -> list[str]:
    """Return one placement."""
    loads = sum(entry.figures["loads"] for entry in seeds) / len(seeds)
    moments = [f"{at:.0f}" for at in seeds[0].figures["switches_s"]]
    figures = [share(average(seeds, "slo_attainment")), seconds(average(seeds, "mean_s"))]
    return [
        name,
        str(len(seeds)),
        *figures,
        *map(text, phases),
        f"{loads:.0f}",
        ", ".join(moments) or "-",
    ]


def text(phase: Share) -> str:
    """Return a phase in a cell."""
    return f"{share(phase.on_time)}, {seconds(phase.mean_s)} s"


def total(phases: Sequence[Share]) -> list[str]:
    """Return attainment and mean over all phases."""
    return [share(attained(phases)), seconds(mean_s(phases))]


def attained(phases: Sequence[Share]) -> float:
    """Return the share on time over all phases."""
    return sum(p.requests * p.on_time for p in phases) / sum(p.requests for p in phases)


def mean_s(phases: Sequence[Share]) -> float:
    """Return the mean latency over all phases."""
    return sum(p.requests * p.mean_s for p in phases) / sum(p.requests for p in phases)


def phases_of(seeds: Seeds, *, settled: bool = False) -> list[Share]:
    """Return every phase over all seeds, or of each what came two windows after its begin or later."""
    found = []
    for phases in zip(*(entry.figures["per_phase"] for entry in seeds), strict=True):
        parts = [phase["settled"] if settled else phase for phase in phases]
        count = sum(part["finished"] for part in parts)
        waited_s = sum(part["finished"] * part["mean_s"] for part in parts)
        found.append(Share(count, sum(part["on_time"] for part in parts) / count, waited_s / count))
    return found


def best_of_each(phases: Mapping[str, Sequence[Share]]) -> list[Share]:
    """Return for every phase what the placement by hand reaches that is best in it."""
    by_hand = [shares for name, shares in phases.items() if name != AUTOMATIC]
    return [
        max(options, key=lambda p: (round(p.on_time, 4), -p.mean_s))
        for options in zip(*by_hand, strict=True)
    ]


def ends_s(entry: Entry) -> list[float]:
    """Return when the phases end."""
    return [part["ends_s"] for part in entry.figures["per_phase"]]


def followed() -> Iterator[tuple[str, str, str, bool]]:
    """Yield targets: what, how much, what was reached, whether that is enough.

    A shift is followed when what arrives two windows after it or later is served as well as by the
    placement by hand that is best then: any switch would not do, it may be one that helps nothing.
    """
    for title, found in situations().items():
        by_sizing = grouped(found, sizing)
        if AUTOMATIC not in by_sizing or len(by_sizing) == 1:
            continue
        seeds = {entry.cell.seed for entry in by_sizing[AUTOMATIC]}
        alike = {name: [e for e in g if e.cell.seed in seeds] for name, g in by_sizing.items()}
        windows = f"from {WINDOWS} windows after each shift on"
        for when, settled in (("", False), (f" {windows}", True)):
            phases = {
                name: phases_of(group, settled=settled)[settled:]
                for name, group in alike.items()
                if group
            }
            ratio = attained(phases[AUTOMATIC]) / attained(best_of_each(phases))
            what = f"{title}: the orchestrator's attainment over the best by hand of each phase"
            yield what + when, "0.97", f"{ratio:.3f}", ratio >= 0.97  # noqa: PLR2004 - the target
