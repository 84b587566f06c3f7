"""Integers of a split: how many devices for each pool.

Three rules. `apportioned` shares devices in proportion to work; `balanced` makes the slowest of
several stages as fast as it can be; `pool_sizes` gives auxiliaries what their demand takes, with
room for queueing. All are pure arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor

import msgspec

_EPSILON = 1e-9


class PoolSizes(msgspec.Struct, frozen=True):
    """Devices that only encode and devices that only decode."""

    encode: int
    decode: int

    @property
    def total(self) -> int:
        """All auxiliary devices."""
        return self.encode + self.decode


def apportioned(total: int, work: Sequence[float], floors: Sequence[int]) -> list[int] | None:
    """Share `total` by largest remainder, none below its floor; None if the floors exceed it.

    A share that would fall below its floor gets the floor, and the rest is shared anew.
    """
    if sum(floors) > total:
        return None
    shares: dict[int, int] = {}
    while True:
        open_ = [i for i in range(len(work)) if i not in shares]
        left, weight = total - sum(shares.values()), sum(work[i] for i in open_)
        quota = {i: left * work[i] / weight if weight > 0 else left / len(open_) for i in open_}
        low = [i for i in open_ if quota[i] < floors[i]]
        if not low:
            break
        shares.update({i: floors[i] for i in low})
    shares |= {i: floor(quota[i] + _EPSILON) for i in open_}
    by_remainder = sorted(open_, key=lambda i: (shares[i] - quota[i], i))
    for i in by_remainder[: total - sum(shares.values())]:
        shares[i] += 1
    spare = total - sum(shares.values())
    shares[max(shares, key=lambda i: (work[i], -i))] += spare  # all at their floors
    return [shares[i] for i in range(len(work))]


def in_blocks(counts: Sequence[int], widths: Sequence[int], floors: Sequence[int]) -> list[int]:
    """Round each count to a multiple of its width; the narrowest takes what that sets free.

    Counts stay as they are where the narrowest would fall below its floor.
    """
    narrowest = min(range(len(counts)), key=lambda i: (widths[i], -counts[i], i))
    rounded = list(counts)
    for i in sorted(range(len(counts)), key=lambda i: -widths[i]):
        if i == narrowest:
            continue
        target = max(widths[i], floor(counts[i] / widths[i] + 0.5) * widths[i])
        if rounded[narrowest] + counts[i] - target >= floors[narrowest]:
            rounded[narrowest] += counts[i] - target
            rounded[i] = target
    return rounded


def balanced(total: int, speeds: Sequence[float], floors: Sequence[int]) -> list[int] | None:
    """Return the counts that maximise the least `count x speed`; None if the floors exceed total.

    Args:
        total: devices to split.
        speeds: requests per second of one device of each stage, `inf` for a stage without work.
        floors: least devices of each stage.

    Starts in proportion to 1/speed and moves one device at a time from the stage that can best
    spare it to the slowest, as long as the slowest pair gets faster: for separable increasing
    rates that local optimum is the global one.
    """
    counts = apportioned(total, [1.0 / speed for speed in speeds], floors)
    if counts is None:
        return None
    while True:
        slow = min(range(len(counts)), key=lambda i: (counts[i] * speeds[i], i))
        donors = [i for i in range(len(counts)) if i != slow and counts[i] > floors[i]]
        if not donors:
            return counts
        donor = max(donors, key=lambda i: ((counts[i] - 1) * speeds[i], -i))
        if (counts[donor] - 1) * speeds[donor] <= counts[slow] * speeds[slow] + _EPSILON:
            return counts
        counts[donor] -= 1
        counts[slow] += 1


def pool_sizes(
    *,
    total: int,
    diffuse: float,
    encode: float,
    decode: float,
    headroom: tuple[float, float],
) -> PoolSizes:
    """Size pools from the work that comes in (all in devices), with headroom for encode, decode.

    A stage without work gets no devices. When the cluster cannot carry the demand, headroom is
    pointless and the stages are balanced instead.
    """
    least = (int(encode > 0), int(decode > 0))
    need_encode, need_decode = headroom[0] * encode, headroom[1] * decode
    if diffuse + need_encode + need_decode <= total:
        return PoolSizes(
            max(least[0], ceil(need_encode - _EPSILON)), max(least[1], ceil(need_decode - _EPSILON))
        )
    inverse = [1.0 / work if work > 0 else float("inf") for work in (diffuse, encode, decode)]
    counts = balanced(total, inverse, (1, *least))
    return PoolSizes(counts[1], counts[2]) if counts else PoolSizes(*least)
