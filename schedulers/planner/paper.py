"""The paper's Algorithm 2, as the reading notes quote it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from engine.types import StageKey, StageKind
from schedulers.planner.packing import Recipe, Share
from schedulers.planner.replicas import Wanted
from schedulers.planner.split import balanced

E, D, C = StageKind.ENCODE, StageKind.DIFFUSE, StageKind.DECODE


def paper_recipe(classes: Sequence[Wanted], devices: int) -> Recipe | None:
    """Return Algorithm 2's recipe: types by request count, floored, then balanced speeds.

    Devices that flooring leaves over go to the type with most requests.
    """
    by_type = [
        (model, replica, list(items))
        for (model, replica), items in groupby(
            sorted(classes, key=lambda i: (i.load.model, i.need.replica, i.load.demand)),
            key=lambda item: (item.load.model, item.need.replica),
        )
    ]
    rates = [sum(item.load.rate_per_s for item in items) for _, _, items in by_type]
    if sum(rates) <= 0:
        return None
    counts = [int(rate / sum(rates) * devices + 1e-9) for rate in rates]
    counts[rates.index(max(rates))] += devices - sum(counts)
    primaries, pools = [], []
    for (model, replica, items), count in zip(by_type, counts, strict=True):
        apart = [kind for kind in (E, C) if kind not in replica.primary]
        work = [sum(item.work_of(kind) for item in items) for kind in apart]
        diffuse = sum(item.work for item in items)
        split = balanced(count, [_inverse(w) for w in (diffuse, *work)], [1] * (1 + len(apart)))
        if split is None:
            continue
        width = max(item.need.degree for item in items)
        primaries.append(Share(replica.stages(model), split[0], width))
        pools += [
            Share(frozenset({StageKey(model, kind)}), n)
            for kind, n in zip(apart, split[1:], strict=True)
        ]
    return Recipe("the paper's Algorithm 2", tuple(primaries), tuple(pools))


def _inverse(work: float) -> float:
    return 1.0 / work if work > 0 else float("inf")
