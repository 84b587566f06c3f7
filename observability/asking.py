"""What was asked for in the last seconds, counted when requests arrive.

Stages tell of it late and distorted: a request that queues has begun none, one whose embeddings
were kept has no encode, and a backlog that is worked off looks like demand.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from observability.snapshot import Asked, RequestClass


class _Wish(NamedTuple):
    at_s: float
    key: RequestClass
    outputs: int
    steps: int


class RequestCount:
    """Outputs and denoise steps asked for, by class, over a sliding window."""

    def __init__(self, *, window_s: float, most: int) -> None:
        """Begin with an empty window; `most` requests at a time are counted, the latest."""
        self._window_s, self._most = window_s, most
        self._wishes: deque[_Wish] = deque()
        self._sums: dict[RequestClass, tuple[int, int]] = {}

    def __len__(self) -> int:
        """Return how many requests are in the window."""
        return len(self._wishes)

    def add(self, key: RequestClass, *, outputs: int, steps: int, at_s: float) -> None:
        """Count a request of `outputs` outputs with `steps` steps each."""
        if len(self._wishes) == self._most:
            self._count(self._wishes.popleft(), -1)
        wish = _Wish(at_s, key, outputs, steps)
        self._wishes.append(wish)
        self._count(wish, 1)

    def until(self, now_s: float) -> dict[RequestClass, Asked]:
        """Return what was asked for in the window that ends now."""
        while self._wishes and self._wishes[0].at_s < now_s - self._window_s:
            self._count(self._wishes.popleft(), -1)
        return {
            key: Asked(outputs=outputs, mean_steps=steps / outputs)
            for key, (outputs, steps) in self._sums.items()
        }

    def _count(self, wish: _Wish, sign: int) -> None:
        outputs, steps = self._sums.get(wish.key, (0, 0))
        outputs += sign * wish.outputs
        self._sums[wish.key] = outputs, steps + sign * wish.outputs * wish.steps
        if not outputs:
            del self._sums[wish.key]
