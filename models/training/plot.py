"""Draw a training run: `python -m models.training.plot --run FOLDER --out models/shapes/training.png`.

Left the loss of one stage of the denoiser, right its scores on held-out captions along the way.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

from matplotlib import pyplot as plt

from models.training.looks import looks_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

_CURVES = (
    ("single", "all"),
    ("pair", "all"),
    ("styled", "all"),
    ("later shapes", "all"),
    ("pair at 96", "all"),
)
_CLIP_CURVES = ("present", "colour", "shape", "direction", "smooth", "all")


def main() -> None:
    """Read the logs of a run folder and write one picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--stage", default="wider", help="denoiser, the first, or wider")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    looks = looks_of(options.run, options.stage)
    panels = 2 if looks else 1
    figure, axes = plt.subplots(1, panels, figsize=(4.5 * panels, 3.2), dpi=80, squeeze=False)
    left, right = axes[0, 0], axes[0, -1]
    rows = _numbers(options.run / f"{options.stage}.csv")
    left.plot(rows[:, 0] / 1000, _smooth(rows[:, 2]), lw=1)
    counted = f"thousand {_counted(looks)}"
    left.set(title="loss of the denoiser", xlabel=counted, yscale="log")
    if looks:
        _plot_looks(right, looks)
    figure.tight_layout()
    figure.savefig(options.out)


def _plot_looks(axes: Axes, looks: Sequence[Mapping[str, Any]]) -> None:
    """One curve per kind of caption that was looked at; of clips, one per point."""
    counted = _counted(looks)
    seen = [look[counted] / 1000 for look in looks]
    if counted == "clips":
        curves = {point: [look[point] for look in looks] for point in _CLIP_CURVES}
    else:
        known = [(kind, point) for kind, point in _CURVES if kind in looks[0]]
        curves = {f"{kind}: {p}": [look[kind][p] for look in looks] for kind, p in known}
    for name, values in curves.items():
        axes.plot(seen, values, label=name)
    axes.set(title="held-out captions right", xlabel=f"thousand {counted}", ylim=(0, 1.02))
    axes.legend(fontsize=7)


def _counted(looks: Sequence[Mapping[str, Any]]) -> str:
    return "clips" if looks and "clips" in looks[0] else "pictures"


def _numbers(path: Path) -> np.ndarray:
    """Pictures, seconds and loss per line; what was run again after a resume counts once."""
    rows: list[list[float]] = []
    with path.open(newline="") as file:
        for line in csv.reader(file):
            row = [float(cell) for cell in line]
            while rows and rows[-1][0] >= row[0]:
                rows.pop()
            rows.append(row)
    return np.array(rows)


def _smooth(values: np.ndarray, over: int = 9) -> np.ndarray:
    """Running mean; the ends use what there is."""
    kernel = np.ones(min(over, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


if __name__ == "__main__":
    main()
