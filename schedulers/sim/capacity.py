"""How many nodes a target needs: a search over clusters, each judged by a simulation."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from schedulers.sim.phases import GpuSeconds
from schedulers.sim.traces import TraceRow


class Trial(msgspec.Struct, frozen=True):
    """What a cluster of so many nodes reached."""

    nodes: int
    attainment: float


class Capacity(msgspec.Struct, frozen=True):
    """The answer and everything that was tried; `nodes` None means more than was allowed."""

    nodes: int | None
    trials: tuple[Trial, ...]


def least_nodes(
    attainment: Callable[[int], float], *, target: float, first: int, most: int
) -> Capacity:
    """Return the least number of nodes whose attainment reaches the target.

    Doubles from `first` to the first success and halves the gap to the last failure, as if more
    nodes never did worse. That the number below the answer fails has always been tried.
    """
    trials: list[Trial] = []

    def enough(nodes: int) -> bool:
        trials.append(Trial(nodes, attainment(nodes)))
        return trials[-1].attainment >= target

    failed, tried = 0, min(first, most)
    while not enough(tried):
        if tried == most:
            return Capacity(None, tuple(trials))
        failed, tried = tried, min(2 * tried, most)
    reached = tried
    while reached - failed > 1:
        middle = (failed + reached) // 2
        failed, reached = (failed, middle) if enough(middle) else (middle, reached)
    return Capacity(reached, tuple(sorted(trials, key=lambda trial: trial.nodes)))


def asked_gpus(rows: Iterable[TraceRow], gpu_seconds: GpuSeconds, duration_s: float) -> float:
    """Return the GPUs that requests would keep busy at their cheapest degrees: a lower bound."""
    return sum(map(gpu_seconds, rows)) / max(duration_s, 1.0)
