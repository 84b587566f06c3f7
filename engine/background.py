"""Tasks that a component runs for itself, none of which may end unnoticed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Background:
    """Spawns tasks and reports the first exception that one of them did not expect.

    Args:
        on_crash: called on the event loop with the exception; it must not raise.
    """

    def __init__(self, on_crash: Callable[[BaseException], None]) -> None:
        """Begin with no task."""
        self._on_crash = on_crash
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` until it ends, is cancelled, or `close` is called."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_crash(error)

    async def close(self) -> None:
        """Cancel everything that still runs and wait for its end; idempotent."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
