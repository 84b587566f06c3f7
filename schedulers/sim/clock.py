"""A virtual clock: an asyncio event loop whose time jumps to the next timer when all tasks wait.

Everything that sleeps on the loop (`asyncio.sleep`, `asyncio.timeout`) then runs in virtual time,
so the engine's real core loop needs no change to be simulated. Deterministic: timers fire in the
order (time, creation).
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class DeadlockError(RuntimeError):
    """All tasks wait and no timer is left: the simulated system can never move again."""


class _JumpingSelector(selectors.SelectSelector):
    """Never blocks: where a real selector would wait for a timer, the virtual time jumps."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            message = "Every task waits and no timer is set; the simulation is deadlocked."
            raise DeadlockError(message)
        self.now_s += max(0.0, timeout)
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that is its own clock, beginning at 0 seconds."""

    def __init__(self) -> None:
        """Install the jumping selector."""
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._jumping.now_s


class VirtualClock:
    """The engine's `Clock` on a `VirtualTimeLoop`."""

    def now(self) -> float:
        """Return the loop's virtual seconds."""
        return asyncio.get_running_loop().time()

    async def sleep(self, duration_s: float) -> None:
        """Let `duration_s` virtual seconds pass."""
        await asyncio.sleep(duration_s)


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end in virtual time and return its result."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
