"""Rounds: moments at fixed distances at which a policy decides, as long as there is work."""

from __future__ import annotations

from math import ceil, floor

_EARLY_S = 1e-6  # a timer may fire this much before its time


class Ticks:
    """Multiples of a period; none while nobody waits for one."""

    def __init__(self, period_s: float) -> None:
        """Begin at rest."""
        self._period_s = period_s
        self._next_s: float | None = None

    @property
    def next_s(self) -> float | None:
        """When the next round begins, None at rest."""
        return self._next_s

    def rest(self) -> None:
        """Wait for nothing."""
        self._next_s = None

    def strike(self, now_s: float) -> bool:
        """Whether a round begins now; if not, `next_s` says when."""
        if self._next_s is None:
            self._next_s = ceil((now_s - _EARLY_S) / self._period_s) * self._period_s
        if now_s < self._next_s - _EARLY_S:
            return False
        self._next_s = (floor((now_s + _EARLY_S) / self._period_s) + 1) * self._period_s
        return True
