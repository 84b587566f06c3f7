"""What no scheduler can exceed: work conservation on a machine that is one fluid.

The GPUs of the cluster become one machine of their summed speed, which runs every request at its
cheapest feasible degree, without fragments, hand-offs or waiting for a team. Such a machine can do
whatever a real policy can. Which requests it can have on time is Moore and Hodgson's problem:
take requests by deadline, and whenever the work so far does not fit, drop the dearest.

Arrivals are honoured by an upper bound only: work that arrives later cannot be done before it
arrives, so the machine's capacity until a deadline counts from the first arrival, and a request
that alone cannot be in time is dropped. The bound is therefore not attained; nobody beats it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """A request to the fluid machine: seconds on the clock, GPU-seconds of work."""

    arrival_s: float
    deadline_s: float
    work: float


def load(pieces: Iterable[Piece], gpus: int) -> float:
    """Return rho: the work asked for over what the GPUs can do while requests arrive."""
    listed = list(pieces)
    if len(listed) < 2:  # noqa: PLR2004 - a rate needs two arrivals
        return 0.0
    arrivals = [piece.arrival_s for piece in listed]
    gap_s = (max(arrivals) - min(arrivals)) / (len(listed) - 1)
    return sum(piece.work for piece in listed) / (gap_s * len(listed) * gpus) if gap_s else 0.0


def attainment(pieces: Iterable[Piece], gpus: int) -> float:
    """Return the largest share of requests that the fluid machine has on time."""
    by_deadline = sorted(pieces, key=lambda piece: piece.deadline_s)
    if not by_deadline:
        return 0.0
    begin_s = min(piece.arrival_s for piece in by_deadline)
    kept: list[float] = []  # a heap of negated work
    total = 0.0
    for piece in by_deadline:
        heapq.heappush(kept, -piece.work)
        total += piece.work
        if total > gpus * (piece.deadline_s - begin_s):
            total += heapq.heappop(kept)
    return len(kept) / len(by_deadline)


def windows(pieces: Iterable[Piece], gpus: int, *, count: int) -> float:
    """Return the bound of `attainment` with arrivals honoured, at `count` moments.

    Between two moments only those requests are looked at that arrive after the first and are due
    before the second: all their work has to be done between them, so what they must drop is dropped
    in the whole as well. Windows that do not overlap have no request in common, so the windows are
    chosen that drop most together.
    """
    by_deadline = sorted(pieces, key=lambda piece: piece.deadline_s)
    if not by_deadline:
        return 0.0
    arrivals = sorted(piece.arrival_s for piece in by_deadline)
    moments = sorted({arrivals[i * len(arrivals) // count] for i in range(count)})
    moments.append(by_deadline[-1].deadline_s)
    dropped = [0] * len(moments)  # from each moment to the end
    for i in reversed(range(len(moments) - 1)):
        within = _dropped(by_deadline, gpus, moments[i], moments[i + 1 :])
        dropped[i] = max(n + dropped[i + 1 + j] for j, n in enumerate(within))
    return 1 - dropped[0] / len(by_deadline)


def _dropped(
    by_deadline: Sequence[Piece], gpus: int, begin_s: float, ends_s: Sequence[float]
) -> list[int]:
    """Return how many requests of the windows from `begin_s` to each end cannot be on time."""
    kept: list[float] = []  # a heap of negated work
    total, dropped, counts = 0.0, 0, list[int]()
    for piece in by_deadline:
        if piece.arrival_s < begin_s:
            continue
        while piece.deadline_s > ends_s[len(counts)]:
            counts.append(dropped)
        heapq.heappush(kept, -piece.work)
        total += piece.work
        if total > gpus * (piece.deadline_s - begin_s):
            total += heapq.heappop(kept)
            dropped += 1
    return counts + [dropped] * (len(ends_s) - len(counts))


def all_done_s(pieces: Iterable[Piece], gpus: int) -> float:
    """Return the moment before which the fluid machine cannot have done all work."""
    work, latest_s = 0.0, 0.0
    for piece in sorted(pieces, key=lambda piece: -piece.arrival_s):
        work += piece.work
        latest_s = max(latest_s, piece.arrival_s + work / gpus)
    return latest_s
