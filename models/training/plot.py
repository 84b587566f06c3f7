"""Draw a training run: `python -m models.training.plot --run FOLDER --out models/shapes/training.png`.

Left the loss of the denoiser, right its scores on held-out captions along the way.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

from matplotlib import pyplot as plt

_CURVES = (("single", "shape"), ("single", "all"), ("pair", "shape"), ("pair", "all"))


def main() -> None:
    """Read the logs of a run folder and write one picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), dpi=80)
    rows = _numbers(options.run / "denoiser.csv")
    left.plot(rows[:, 0] / 1000, _smooth(rows[:, 2]), lw=1)
    left.set(title="loss of the denoiser", xlabel="thousand pictures", yscale="log")
    looks = [json.loads(line) for line in (options.run / "looks.jsonl").open()]
    for kind, point in _CURVES:
        values = [look[kind][point] for look in looks]
        right.plot([look["pictures"] / 1000 for look in looks], values, label=f"{kind}: {point}")
    right.set(title="held-out captions right", xlabel="thousand pictures", ylim=(0, 1.02))
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
