"""When requests of a workload arrive: streams of moments at a mean rate, drawn from a seeded source."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Final

Arrivals = Callable[[random.Random, float, float], Iterator[float]]
"""From a mean rate per second and a duration in seconds to times within that duration."""

GAP_VARIATION: Final = 2.0  # of `clumped`: standard deviation of a gap over its mean
DAY_S: Final = 1800.0  # a day, compressed
DAY_SWING: Final = 0.6  # how far the rate leaves its mean in a day
CALM_S: Final = 90.0
BURST_S: Final = 30.0
CALM_LEVEL: Final = 0.6  # of the mean rate; 90 s at .6 and 30 s at 2.2 average to 1
BURST_LEVEL: Final = 2.2


def evenly(_: random.Random, rate_rps: float, duration_s: float) -> Iterator[float]:
    """Yield moments at equal gaps."""
    count = round(rate_rps * duration_s)
    return (i / rate_rps for i in range(count))


def poisson(rng: random.Random, rate_rps: float, duration_s: float) -> Iterator[float]:
    """Yield moments at exponential gaps."""
    now_s = rng.expovariate(rate_rps)
    while now_s < duration_s:
        yield now_s
        now_s += rng.expovariate(rate_rps)


def in_bursts(rng: random.Random, rate_rps: float, duration_s: float) -> Iterator[float]:
    """Poisson at two levels in turns; every stretch lasts its mean, give or take a half."""
    begin_s, bursting = 0.0, False
    while begin_s < duration_s:
        mean_s, level = (BURST_S, BURST_LEVEL) if bursting else (CALM_S, CALM_LEVEL)
        length_s = min(mean_s * rng.uniform(0.5, 1.5), duration_s - begin_s)
        for offset_s in poisson(rng, rate_rps * level, length_s):
            yield begin_s + offset_s
        begin_s, bursting = begin_s + length_s, not bursting


def by_day(rng: random.Random, rate_rps: float, duration_s: float) -> Iterator[float]:
    """Poisson whose rate follows a sine from night to night, by thinning."""
    peak = 1 + DAY_SWING
    for now_s in poisson(rng, rate_rps * peak, duration_s):
        level = 1 - DAY_SWING * math.cos(2 * math.pi * now_s / DAY_S)
        if rng.random() * peak < level:
            yield now_s


def clumped(rng: random.Random, rate_rps: float, duration_s: float) -> Iterator[float]:
    """Gamma-distributed gaps that vary more than their mean."""
    shape = GAP_VARIATION**-2
    scale_s = 1 / (rate_rps * shape)
    now_s = rng.gammavariate(shape, scale_s)
    while now_s < duration_s:
        yield now_s
        now_s += rng.gammavariate(shape, scale_s)
