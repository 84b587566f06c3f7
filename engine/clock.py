"""The real clock: Unix seconds that follow the machine's wall clock and never step back.

Leases and deadlines are compared between processes and machines, so this clock may not go its own
way: monotonic time stands still while a virtual machine is suspended, and the wall clock may have
been wrong when the process started.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Final

_APART_S: Final = 0.5  # what processes may disagree by; a smaller step is not followed


class SystemClock:
    """Monotonic time, corrected to wall time where they have come apart.

    Where the wall clock is ahead (after a suspension, or because it was set) it is believed at once.
    Where it is behind, this clock runs at half speed until the wall clock has caught up.
    """

    def __init__(
        self,
        *,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with wall time."""
        self._wall, self._steady = wall, steady
        self._lock = threading.Lock()
        self._now_s, self._steady_s = wall(), steady()

    def now(self) -> float:
        """Return seconds since the Unix epoch, never less than before."""
        with self._lock:
            steady_s = self._steady()
            passed_s, self._steady_s = steady_s - self._steady_s, steady_s
            behind_s = self._wall() - (self._now_s + passed_s)
            if behind_s > _APART_S:
                passed_s += behind_s
            elif behind_s < -_APART_S:
                passed_s /= 2
            self._now_s += passed_s
            return self._now_s

    async def sleep(self, duration_s: float) -> None:
        """Sleep on the event loop."""
        await asyncio.sleep(duration_s)
