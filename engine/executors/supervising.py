"""Keeps one process alive per device: starts it, kills it when it hangs, starts the next one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Iterator

import structlog

from engine.executors.slot import WorkerSlot

_FIRST_RESTART_S, _LONGEST_RESTART_S = 0.1, 10.0
_LONG_LIFE_S = 30.0
_WATCH_S = 1.0
log = structlog.get_logger(__name__)


class Supervisor:
    """Supervises the workers of one node.

    Args:
        lost: told of every process that ended, and why.
    """

    def __init__(
        self, slots: Collection[WorkerSlot], lost: Callable[[WorkerSlot, str], None]
    ) -> None:
        """Begin with no process."""
        self._slots, self._lost = slots, lost

    def work(self) -> Iterator[Coroutine[None, None, None]]:
        """Yield all that must run for as long as the executor lives."""
        yield self._watch()
        for slot in self._slots:
            yield self._supervise(slot)

    async def _supervise(self, slot: WorkerSlot) -> None:
        """Keep one worker process alive, with growing pauses while none lives long."""
        pause_s = _FIRST_RESTART_S
        while True:
            lived_long = False
            try:
                await slot.spawn()
            except OSError as error:
                log.error("worker_not_started", device=slot.device, detail=str(error))  # noqa: TRY400 - the machine refused, no bug
            else:
                reason = await slot.wait()
                lived_long = slot.lived_s > _LONG_LIFE_S
                log.warning("worker_exited", reason=reason, restart_in_s=pause_s)
                self._lost(slot, reason)
            await asyncio.sleep(pause_s)
            pause_s = _FIRST_RESTART_S if lived_long else min(2 * pause_s, _LONGEST_RESTART_S)

    async def _watch(self) -> None:
        """Kill workers that hang; each is then restarted like one that died."""
        while True:
            slept_s = -time.monotonic()
            await asyncio.sleep(_WATCH_S)
            slept_s += time.monotonic()
            for slot in self._slots:
                if slept_s > 2 * _WATCH_S:  # this process was stopped, not the worker
                    slot.excuse_silence()
                elif (why := slot.why_hung()) is not None:
                    log.error("worker_hangs", device=slot.device, why=why)
                    slot.kill(why)
