"""Curves through profiled points: durations quadratic in pixels, memory linear.

A denoise step costs a·n + b·n² for n tokens: a for the layers that work token by token, b for
attention, which compares every token with every other. TridentServe's authors fit the same law
(time quadratic in height x width x frames, memory linear, exact table hits first). Tokens are
proportional to pixels for one model, so pixels serve as n.

Between two neighbouring points (n₀, v₀) and (n₁, v₁), r = n / n₁:

* v / n does not fall from n₀ to n₁: v = v₁ (l r + q r²), through both points (quadratic curves);
* else, a fixed cost shows, or the curve is linear: v = v₁ (c + l r), through both points.

Beyond the first or last point the law of the outermost two goes on from there, with its negative
coefficients set to zero (so it neither turns nor crosses zero, and grows at most with n²); above
the last, a duration grows at least with n. Points that fall although n grows are pooled to their
mean first (pool adjacent violators; Ayer et al. 1955), so every curve is monotone. Knows nothing
of stages or degrees.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec

from schedulers.profiles.schema import Provenance, weakest

# With a single point nothing tells how a duration grows: above it, half with n and half with n²
# (dear rather than cheap), below it with n. Shares of (n, n²).
_SINGLE_ABOVE = (0.5, 0.5)
_PROPORTIONAL = (1.0, 0.0)


class Knot(msgspec.Struct, frozen=True):
    """One profiled point."""

    pixels: int
    value: float
    provenance: Provenance


class _Law(msgspec.Struct, frozen=True):
    """`value * (c + linear * r + quadratic * r²)` with r = n / pixels; c is what is left of 1."""

    pixels: int
    value: float
    linear: float
    quadratic: float

    def at(self, pixels: int) -> float:
        # Written around r = 1, so that points a pixel apart lose no digits.
        r = pixels / self.pixels
        change = (pixels - self.pixels) / self.pixels
        grown = 1.0 + change * (self.linear + self.quadratic * (1.0 + r))
        return self.value * max(0.0, grown)


class Curve:
    """A monotone, non-negative function of pixels through `knots` (at least one)."""

    def __init__(self, knots: Iterable[Knot], *, quadratic: bool) -> None:
        """Pool what falls and find the law of every gap; `quadratic` for durations."""
        self._knots = _pooled(_merged(knots))
        self._pixels = [knot.pixels for knot in self._knots]
        gaps = [_between(low, high, quadratic=quadratic) for low, high in pairwise(self._knots)]
        first, last = self._knots[0], self._knots[-1]
        if gaps:
            below = _anchored(gaps[0], first)
            above = _anchored(gaps[-1], last)
            if quadratic:  # a fixed cost that still shows at the largest size would be noise
                above = msgspec.structs.replace(above, linear=1 - above.quadratic)
        else:
            below = _Law(first.pixels, first.value, *_PROPORTIONAL)
            above = _Law(last.pixels, last.value, *(_SINGLE_ABOVE if quadratic else _PROPORTIONAL))
        self._laws = [below, *gaps, above]

    def at(self, pixels: int) -> float:
        """Return the value at so many pixels."""
        return self._laws[bisect_left(self._pixels, pixels)].at(pixels)

    def extrapolation(self, pixels: int) -> float:
        """Return how far outside the points this is: the ratio to the nearest, 1.0 inside."""
        nearest = min(max(pixels, self._pixels[0]), self._pixels[-1])
        return pixels / nearest

    def provenance(self, pixels: int) -> Provenance:
        """Return the weaker mark of the points around."""
        index = bisect_left(self._pixels, pixels)
        around = self._knots[max(0, index - 1) : index + 1]
        return weakest(*(knot.provenance for knot in around))


def _merged(knots: Iterable[Knot]) -> list[Knot]:
    """Sort by pixels; several shapes of the same number of pixels become their mean."""
    groups: dict[int, list[Knot]] = {}
    for knot in sorted(knots, key=lambda knot: (knot.pixels, knot.value)):
        groups.setdefault(knot.pixels, []).append(knot)
    return [_mean(pixels, group) for pixels, group in groups.items()]


def _mean(pixels: int, knots: Sequence[Knot]) -> Knot:
    value = sum(knot.value for knot in knots) / len(knots)
    return Knot(pixels, value, weakest(*(knot.provenance for knot in knots)))


def _pooled(knots: Sequence[Knot]) -> list[Knot]:
    """Replace every run of falling values by its mean, so that values never fall."""
    pools: list[list[Knot]] = []
    for knot in knots:
        pools.append([knot])
        while len(pools) > 1 and _level(pools[-2]) > _level(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    return [Knot(k.pixels, _level(pool), k.provenance) for pool in pools for k in pool]


def _level(pool: Sequence[Knot]) -> float:
    return sum(knot.value for knot in pool) / len(pool)


def _between(low: Knot, high: Knot, *, quadratic: bool) -> _Law:
    """Return the law that goes through both points."""
    r = low.pixels / high.pixels
    ratio = low.value / high.value if high.value else 1.0
    if quadratic and ratio <= r:
        q = (r - ratio) / (r - r * r)
        return _Law(high.pixels, high.value, 1 - q, q)
    return _Law(high.pixels, high.value, (1 - ratio) / (1 - r), 0.0)


def _anchored(law: _Law, knot: Knot) -> _Law:
    """Return `law` as it goes on beyond `knot`: through it, without negative coefficients."""
    r = knot.pixels / law.pixels
    constant = max(0.0, 1 - law.linear - law.quadratic)
    linear, quadratic = max(0.0, law.linear * r), law.quadratic * r * r
    total = constant + linear + quadratic
    return _Law(knot.pixels, knot.value, linear / total, quadratic / total)
