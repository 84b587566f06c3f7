"""The 90 % knees of ours and of the best dynamic baseline with several seeds, as a table."""

from __future__ import annotations

from statistics import geometric_mean

from benchmarks.scheduling.experiments import GOODPUT_GPUS, KNEE_PAIRS, MODELS, SEEDS
from benchmarks.scheduling.knees import LEVELS, crossing
from benchmarks.scheduling.tables import NAMES, curves, markdown

HEADER = ("where", "seed", *(f"k90 of {name}" for name in KNEE_PAIRS), "ratio")


def seeded() -> str:
    """Return where attainment falls to 90 %, read off between two rates of the grid."""
    by_seed = {seed: curves(seed) for seed in SEEDS}
    rows = []
    for model in MODELS:
        where, ratios = f"{NAMES[model]} on {GOODPUT_GPUS[model]} GPUs", []
        for seed, found in by_seed.items():
            knees = [crossing(found.get(model, {}).get(name, {}), LEVELS[0]) for name in KNEE_PAIRS]
            ours, theirs = knees
            if ours is not None and theirs is not None:
                ratios.append(ours / theirs)
                rows.append(
                    [where, str(seed), f"{ours:.3f}", f"{theirs:.3f}", f"{ours / theirs:.2f}"]
                )
        if len(ratios) > 1:
            rows.append([where, "all", "", "", f"{geometric_mean(ratios):.2f}"])
    return markdown(HEADER, rows)
