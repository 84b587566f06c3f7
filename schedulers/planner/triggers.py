"""Triggers: what must be seen, and for how long, before the planner thinks again.

Snapshots come every second over a sliding window, so a sign counts only when it has stood for a
whole further window: that is two windows without a common request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.types import ModelId, Shape
from schedulers.planner.decision import Trigger
from schedulers.planner.replicas import Wanted

Mix = Mapping[tuple[ModelId, Shape], float]


class Signs:
    """How long each sign has stood without a break."""

    def __init__(self) -> None:
        """Begin without signs."""
        self._since_s: dict[Trigger, float] = {}

    def note(self, trigger: Trigger, *, shown: bool, now_s: float, for_s: float) -> bool:
        """Note whether a sign shows now; return whether it has stood for `for_s` seconds."""
        if not shown:
            self._since_s.pop(trigger, None)
            return False
        return now_s - self._since_s.setdefault(trigger, now_s) >= for_s

    def clear(self) -> None:
        """Forget all signs, because they were acted upon."""
        self._since_s.clear()


def work_mix(classes: Sequence[Wanted]) -> dict[tuple[ModelId, Shape], float]:
    """Return the share of each class in the diffuse work."""
    total = sum(item.work for item in classes)
    if total <= 0:
        return {}
    return {(i.load.model, i.load.demand.shape): i.work / total for i in classes if i.work > 0}


def total_variation(one: Mix, other: Mix) -> float:
    """Return half the summed difference of two mixes: 0 if equal, 1 if nothing is in both."""
    keys = sorted({*one, *other})
    return sum(abs(one.get(key, 0.0) - other.get(key, 0.0)) for key in keys) / 2
