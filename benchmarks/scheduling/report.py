"""Tables and plots of docs/benchmarks.md, from the results on disk alone."""

from __future__ import annotations

import re

from matplotlib.figure import Figure

from benchmarks.scheduling.cells import BOUND, ROOT
from benchmarks.scheduling.costs import decisions
from benchmarks.scheduling.goodput_tables import GOODPUT_TABLES, curves, knee_order
from benchmarks.scheduling.knees import GRID, LEVELS, Curve
from benchmarks.scheduling.shifts import shifts, tight
from benchmarks.scheduling.store import RESULTS
from benchmarks.scheduling.tables import NAMES, TABLES
from benchmarks.scheduling.targets import targets

OWN_TABLES = {
    "targets": targets,
    "shifts": shifts,
    "tight": tight,
    "decisions": decisions,
}
PAGE = ROOT / "docs/benchmarks.md"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F5539", "#6A4C93")
DPI = 110


def write_report() -> None:
    """Renew every table between its markers, and every plot."""
    page = PAGE.read_text(encoding="utf-8")
    for name, table in {**OWN_TABLES, **TABLES, **GOODPUT_TABLES}.items():
        page = between(page, name, table())
    PAGE.write_text(page, encoding="utf-8")
    for model, found in curves().items():
        draw_curves(model, found)
    print(f"written to {PAGE.relative_to(ROOT)} and {RESULTS.relative_to(ROOT)}")


def between(page: str, name: str, text: str) -> str:
    """Put a table between its markers.

    Raises:
        SystemExit: the page lacks the markers.
    """
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end {name} -->)", re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"{PAGE} lacks the markers <!-- {name} --> and <!-- end {name} -->.")
    return pattern.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", page)


def draw_curves(model: str, found: dict[str, Curve]) -> None:
    """Draw attainment over rate, one line per policy, the bound dashed."""
    figure = Figure(figsize=(8.5, 4.8), layout="constrained")
    axes = figure.subplots()
    colors = iter(COLORS * 2)
    for name, curve in knee_order(found):
        steps = sorted(curve)
        bound = name == BOUND
        axes.plot(
            [GRID[step] for step in steps],
            [curve[step] for step in steps],
            label="work-conservation bound" if bound else name,
            color="#444444" if bound else next(colors),
            linestyle="--" if bound else "-",
            linewidth=2.4 if name == "trident" else 1.3,
            marker=None if bound else "o",
            markersize=3.5,
        )
    for level in LEVELS:
        axes.axhline(level, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("rate over the nominal rate")
    axes.set_ylabel("share of requests on time")
    axes.set_title(f"Simulated: {NAMES[model]}, deadline 2.5 x the best latency", loc="left")
    axes.grid(color="#eeeeee", linewidth=0.6)
    axes.legend(fontsize="small", loc="lower left")
    figure.savefig(RESULTS / f"goodput-{model}.png", dpi=DPI)
