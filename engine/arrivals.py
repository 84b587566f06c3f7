"""Weights on their way to a device: who waits for them, and whether they may be sent back.

A load that no launch waits for may be superseded: by a placement that no longer wants it, or by a
launch that needs its memory.
"""

from __future__ import annotations

import asyncio

from engine.errors import EngineError, RequestCancelledError
from engine.types import DeviceId, StageKey, TaskId


class Arrival:
    """One load under way.

    Attributes:
        is_moving: the executor was asked to load.
        is_stopping: it was told to stop and will free what it has loaded.
        alone: what holds the device's team for it, if nothing may run beside it.
        ended: set once it holds its memory for good, or holds none.
    """

    def __init__(self, device: DeviceId, stage: StageKey) -> None:
        """Begin without a task that loads; `carried_by` gives it one."""
        self.device, self.stage = device, stage
        self.is_moving = self.is_stopping = False
        self.alone: TaskId | None = None
        self.ended = asyncio.Event()
        self._waiting: dict[TaskId, asyncio.Future[None]] = {}
        self._task: asyncio.Task[None] | None = None

    def carried_by(self, task: asyncio.Task[None]) -> None:
        """Remember the task that loads."""
        self._task = task

    @property
    def is_wanted(self) -> bool:
        """Whether a launch waits for it."""
        return bool(self._waiting)

    def claim(self, task: TaskId) -> None:
        """Note that a launch needs it, so that it is not superseded."""
        self._waiting[task] = asyncio.get_running_loop().create_future()

    def unclaim(self, task: TaskId) -> None:
        """Note that a launch does not need it after all."""
        self._waiting.pop(task).cancel()

    async def wait(self, task: TaskId) -> None:
        """Wait for its end; raises why it failed, or that the launch was abandoned."""
        try:
            await self._waiting[task]
        finally:
            del self._waiting[task]

    def abandon(self, task: TaskId) -> None:
        """Let a launch that is not wanted any more go on without it."""
        future = self._waiting.get(task)
        if future is not None and not future.done():
            future.set_exception(RequestCancelledError(f"{task} ended while its stage was loaded."))

    def stop(self) -> None:
        """Send it back: the load stops between two chunks."""
        assert self._task is not None  # it was begun
        self.is_stopping = True
        if self.is_moving:  # else its task has not run yet, and sees this when it does
            self._task.cancel()

    def end(self, error: EngineError | None = None) -> None:
        """Tell all who wait how it ended."""
        self.ended.set()
        for future in list(self._waiting.values()):
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
