"""The real clock: Unix seconds derived from the monotonic clock, so they never step back."""

from __future__ import annotations

import asyncio
import time


class SystemClock:
    """Wall time at construction plus monotonic time since."""

    def __init__(self) -> None:
        """Anchor the monotonic clock to the wall clock once."""
        self._epoch_s = time.time() - time.monotonic()

    def now(self) -> float:
        """Return seconds since the Unix epoch."""
        return self._epoch_s + time.monotonic()

    async def sleep(self, duration_s: float) -> None:
        """Sleep on the event loop."""
        await asyncio.sleep(duration_s)
