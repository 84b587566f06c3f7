"""Where a policy's attainment falls below a level: rates on a grid of 4 %, searched by halving.

Pure: it knows rates by their place on the grid and is told the attainment of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

RESOLUTION: Final = 1.04
STRIDE: Final = 4  # first steps: 17 %
LOWEST, HIGHEST = -36, 40  # .24 to 4.8 times the nominal rate
LEVELS: Final = (0.90, 0.99)
ENOUGH: Final = 0.5  # a curve ends below this
BEYOND: Final = (STRIDE, 7)  # where a curve goes on above its knee; 7 is 1.3 times it

GRID: Final[Mapping[int, float]] = {
    step: round(RESOLUTION**step, 3) for step in range(LOWEST, HIGHEST + 1)
}
Curve = dict[int, float]
"""Attainment by step of the grid."""


def search(found: Curve) -> Iterator[int]:
    """Yield steps until both knees are known; the caller enters each attainment into `found`."""
    for level in LEVELS:
        yield from _bracket(found, level)
        yield from _halve(found, level)
    yield from _beyond(found)


def around(found: Curve, *, begin: int) -> Iterator[int]:
    """Yield steps until the 90 % knee is known, from a step that is thought to be near it."""
    yield begin
    yield from _bracket(found, LEVELS[0])
    yield from _halve(found, LEVELS[0])


def crossing(found: Curve, level: float) -> float | None:
    """Return where the line between the knee and the next rate that was tried falls to the level."""
    low = _last_above(found, level)
    high = None if low is None else _first_below(found, level, low)
    if low is None or high is None:
        return None
    part = (found[low] - level) / (found[low] - found[high])
    return GRID[low] + part * (GRID[high] - GRID[low])


def knee(found: Curve, level: float) -> float | None:
    """Return the highest rate at which the level is reached; None if at none that was tried."""
    step = _last_above(found, level)
    return None if step is None else GRID[step]


def _bracket(found: Curve, level: float) -> Iterator[int]:
    """Step up or down until the level is passed."""
    if not found:
        yield 0
    while (low := _last_above(found, level)) is None:
        step = min(found) - STRIDE
        if step < LOWEST:
            return
        yield step
    while _first_below(found, level, low) is None:
        step = low + STRIDE
        if step > HIGHEST:
            return
        yield step
        reached = _last_above(found, level)
        low = low if reached is None else max(low, reached)


def _halve(found: Curve, level: float) -> Iterator[int]:
    while True:
        low = _last_above(found, level)
        high = None if low is None else _first_below(found, level, low)
        if low is None or high is None or high - low <= 1:
            return
        yield (low + high) // 2


def _beyond(found: Curve) -> Iterator[int]:
    """Go on above the 90 % knee, to show how a policy behaves under overload."""
    low = _last_above(found, LEVELS[0])
    if low is None:
        return
    for step in (low + above for above in BEYOND):
        if step > HIGHEST or min(value for at, value in found.items() if at <= step) < ENOUGH:
            return
        if not any(abs(step - at) < STRIDE / 2 for at in found):
            yield step


def _last_above(found: Curve, level: float) -> int | None:
    """Return the highest step that reaches the level with no failure tried below it."""
    reached = None
    for step in sorted(found):
        if found[step] < level:
            return reached
        reached = step
    return reached


def _first_below(found: Curve, level: float, low: int) -> int | None:
    return min(
        (step for step, value in found.items() if step > low and value < level), default=None
    )
