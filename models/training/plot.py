"""Draw a training run: `python -m models.training.plot --run FOLDER --out models/shapes/training.png`.

Left the loss of one stage of the denoiser, right its scores on held-out captions along the way.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

from matplotlib import pyplot as plt

from models.training.looks import looks_of

_CURVES = (
    ("single", "all"),
    ("pair", "all"),
    ("styled", "all"),
    ("single at 96", "all"),
    ("single at 128", "all"),
)


def main() -> None:
    """Read the logs of a run folder and write one picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--stage", default="wider", help="denoiser, the first, or wider")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), dpi=80)
    rows = _numbers(options.run / f"{options.stage}.csv")
    left.plot(rows[:, 0] / 1000, _smooth(rows[:, 2]), lw=1)
    left.set(title="loss of the denoiser", xlabel="thousand pictures", yscale="log")
    looks = looks_of(options.run, options.stage)
    for kind, point in _CURVES:
        if not looks or kind not in looks[0]:
            continue
        values = [look[kind][point] for look in looks]
        right.plot([look["pictures"] / 1000 for look in looks], values, label=f"{kind}: {point}")
    right.set(title="held-out captions right", xlabel="thousand pictures", ylim=(0, 1.02))
    if looks:
        right.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(options.out)


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
