"""Orders that were sent ahead: launches that follow a task of their team without being asked again.

A launch that makes no output ends after those that were sent to follow it: their tasks may be sent
again at once, and a worker must not be asked for the same thing twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from engine.types import TaskId


class Following:
    """Which orders follow which task now."""

    def __init__(self) -> None:
        """Begin with none."""
        self._ended: dict[TaskId, asyncio.Event] = {}

    @contextmanager
    def after(self, task: TaskId | None) -> Iterator[None]:
        """Note that an order follows `task` until the block ends; None: it follows nothing."""
        if task is None:
            yield
            return
        ended = self._ended[task] = asyncio.Event()
        try:
            yield
        finally:
            del self._ended[task]
            ended.set()

    async def ended(self, task: TaskId) -> None:
        """Wait until what was sent to follow `task` has ended."""
        if (ended := self._ended.get(task)) is not None:
            await ended.wait()
