"""Curves of attainment over rate, their knees, and overload: tables from results on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import geometric_mean
from typing import Final

from benchmarks.scheduling.cells import BOUND
from benchmarks.scheduling.experiments import GOODPUT_GPUS, KNEE_PAIRS, MODELS, SEEDS, policy_name
from benchmarks.scheduling.knees import GRID, LEVELS, Curve, crossing, knee
from benchmarks.scheduling.store import Entry
from benchmarks.scheduling.tables import (
    NAMES,
    Seeds,
    class_share,
    entries,
    grouped,
    markdown,
    share,
    volume,
)

HEADER = ("where", "seed", *(f"k90 of {name}" for name in KNEE_PAIRS), "ratio")


def swept() -> list[Entry]:
    """Return the cells of goodput curves, those of further seeds left out."""
    return [e for e in of_goodput() if e.cell.seed == 1]


def of_goodput() -> list[Entry]:
    """Return the cells of goodput curves."""
    return [e for e in entries("goodput") if e.cell.gpus == GOODPUT_GPUS[e.cell.model]]


def curves(seed: int = 1) -> dict[str, dict[str, Curve]]:
    """Return attainment by step of the grid, per model and policy."""
    step_of = {rate: step for step, rate in GRID.items()}
    found: dict[str, dict[str, Curve]] = {}
    for entry in of_goodput():
        if entry.cell.seed != seed:
            continue
        step = step_of.get(entry.cell.rate_scale)
        if step is not None:
            curve = found.setdefault(entry.cell.model, {}).setdefault(policy_name(entry.cell), {})
            curve[step] = entry.figures["slo_attainment"]
    return found


def goodput() -> str:
    """Return the knees per model, and how many times as far Trident's are."""
    parts = []
    for model in MODELS:
        found = curves().get(model, {})
        ours = [knee(found.get("trident", {}), level) for level in LEVELS]
        rows = [goodput_row(name, curve, ours) for name, curve in knee_order(found)]
        header = ("policy", "k90", "k99", "Trident's k90 over it", "k99 over it", "points")
        title = f"{NAMES[model]} on {GOODPUT_GPUS[model]} GPUs (simulated)"
        parts += [title, markdown(header, rows)]
        parts += [
            f"![attainment over rate](../benchmarks/scheduling/results/goodput-{model}.png)"
        ] * bool(rows)
    return "\n\n".join(parts)


def knee_order(found: Mapping[str, Curve]) -> list[tuple[str, Curve]]:
    """Order policies by their 90 % knee, the best first."""
    return sorted(found.items(), key=lambda item: -(knee(item[1], LEVELS[0]) or 0.0))


def goodput_row(name: str, curve: Curve, ours: Sequence[float | None]) -> list[str]:
    """Return knees and ratios of a policy."""
    knees = [knee(curve, level) for level in LEVELS]
    ratios = [
        "-" if own is None or its is None else f"{own / its:.2f}"
        for own, its in zip(ours, knees, strict=True)
    ]
    shown = ["-" if k is None else f"{k:.2f}" for k in knees]
    return [name, *shown, *ratios, str(len(curve))]


def curve_points() -> str:
    """Return every point of every curve, with the attainment of the largest class."""
    parts = []
    for model in MODELS:
        found = [e for e in swept() if e.cell.model == model]
        groups = grouped(found, policy_name)
        rates = sorted({entry.cell.rate_scale for entry in found})
        rows = [[name, *points(seeds, rates)] for name, seeds in sorted(groups.items())]
        parts += [
            f"{NAMES[model]}: on time by rate, the largest class in brackets (simulated)",
            markdown(("policy", *(f"{rate:g}" for rate in rates)), rows),
        ]
    return "\n\n".join(parts)


def points(seeds: Seeds, rates: Sequence[float]) -> list[str]:
    """Return attainment at the rates that were simulated."""
    by_rate = {entry.cell.rate_scale: entry for entry in seeds}
    return [point(by_rate[rate]) if rate in by_rate else "" for rate in rates]


def point(entry: Entry) -> str:
    """Return attainment of all, and of the largest class."""
    classes = sorted(entry.figures.get("per_class", {}), key=volume)
    largest = f" ({class_share([entry], classes[-1])})" if classes else ""
    return share(entry.figures["slo_attainment"]) + largest


def classes() -> str:
    """Return for every policy who is on time at its own 90 % knee, class by class."""
    parts = []
    for model in MODELS:
        found = curves().get(model, {})
        at = {name: knee(curve, LEVELS[0]) for name, curve in knee_order(found) if name != BOUND}
        cells = {
            (policy_name(e.cell), e.cell.rate_scale): e for e in swept() if e.cell.model == model
        }
        knees = [(name, cells[name, rate]) for name, rate in at.items() if rate is not None]
        sizes = sorted({size for _, e in knees for size in e.figures["per_class"]}, key=volume)
        rows = [
            [name, f"{e.cell.rate_scale:.2f}", *(class_share([e], size) for size in sizes)]
            for name, e in knees
        ]
        title = f"{NAMES[model]} on {GOODPUT_GPUS[model]} GPUs: on time by size at the own k90 (simulated)"
        parts += [title, markdown(("policy", "k90", *sizes), rows)]
    return "\n\n".join(parts)


def overload() -> str:
    """Return goodput at 1.3 times the own 90 % knee over goodput at the knee."""
    rows = []
    for model in MODELS:
        for name, curve in knee_order(curves().get(model, {})):
            low = knee(curve, LEVELS[0])
            above = [s for s in curve if low is not None and low * 1.2 <= GRID[s] <= low * 1.45]
            if low is None or not above or name == BOUND:
                continue
            step = min(above, key=lambda s: abs(GRID[s] - 1.3 * low))
            own = next(s for s in curve if GRID[s] == low)
            ratio = GRID[step] * curve[step] / (low * curve[own])
            rows.append(
                [
                    NAMES[model],
                    name,
                    f"{low:.2f}",
                    f"{GRID[step]:.2f}",
                    share(curve[step]),
                    f"{ratio:.2f}",
                ]
            )
    header = ("model", "policy", "own k90", "rate", "on time there", "goodput over that at k90")
    return markdown(header, rows)


def seeded() -> str:
    """Return where attainment falls to 90 %, read off between two rates of the grid."""
    rows = []
    for model in MODELS:
        where, found = f"{NAMES[model]} on {GOODPUT_GPUS[model]} GPUs", crossings(model)
        for seed, (ours, theirs) in found.items():
            rows.append([where, str(seed), f"{ours:.3f}", f"{theirs:.3f}", f"{ours / theirs:.2f}"])
        if len(found) > 1:
            rows.append([where, "all", "", "", f"{lead(found):.2f}"])
    return markdown(HEADER, rows)


def crossings(model: str) -> dict[int, tuple[float, float]]:
    """Return by seed where both of `KNEE_PAIRS` fall to 90 %, where that is known of both."""
    found = {}
    for seed in SEEDS:
        known = curves(seed).get(model, {})
        ours, theirs = (crossing(known.get(name, {}), LEVELS[0]) for name in KNEE_PAIRS)
        if ours is not None and theirs is not None:
            found[seed] = ours, theirs
    return found


def lead(found: Mapping[int, tuple[float, float]]) -> float:
    """Return how many times as far the first of each pair is, over all seeds."""
    return geometric_mean(ours / theirs for ours, theirs in found.values())


GOODPUT_TABLES: Final[dict[str, Callable[[], str]]] = {
    "goodput": goodput,
    "classes": classes,
    "seeded": seeded,
    "curves": curve_points,
    "overload": overload,
}
