"""What time does to jobs, whoever is alive to see it: every process of a deployment sweeps.

Jobs of holders that died are queued again, jobs that waited too long expire, and content that was
kept long enough is removed. Each step is one transaction that skips what others work on, so any
number of sweepers do no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import structlog

from gateway.jobs.events import event_of
from gateway.jobs.retention import BATCH

if TYPE_CHECKING:
    from engine.ports import Clock
    from gateway.jobs.events import JobEvents
    from gateway.jobs.leases import JobLeases
    from gateway.jobs.retention import Retention

_SWEEPS_PER_LEASE: Final = 3

_log = structlog.get_logger(__name__)


class Sweeper:
    """Sweeps now and then, in the background."""

    def __init__(
        self,
        *,
        leases: JobLeases,
        retention: Retention,
        events: JobEvents,
        clock: Clock,
        renew: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Sweep three times per lease, after `renew` has renewed the leases of this process."""
        self._leases = leases
        self._retention = retention
        self._events = events
        self._clock = clock
        self._renew = renew
        self._interval_s = leases.lease_s / _SWEEPS_PER_LEASE

    @asynccontextmanager
    async def sweeping(self) -> AsyncIterator[None]:
        """Sweep for as long as the context lasts."""
        task = asyncio.create_task(self._run(), name="sweeper")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        while True:
            try:
                is_done = await self.sweep()
            except Exception:  # noqa: BLE001 - a database in trouble must not end the sweeper
                _log.exception("sweep_failed")
                is_done = True
            await asyncio.sleep(self._interval_s if is_done else 0.0)

    async def sweep(self) -> bool:
        """Do what is due, of removals one batch; return whether that was all of them."""
        if self._renew is not None:  # the machine may have slept: what runs here has no dead holder
            await self._renew()
        now_s = self._clock.now()
        for changed in await self._leases.recover(now_s=now_s):
            _log.warning("job_recovered", job_id=changed.id, status=changed.status.value)
            self._events.publish(event_of(changed))
        removed = await self._retention.remove_content(now_s=now_s)
        forgotten = await self._retention.forget(now_s=now_s)
        if removed or forgotten:
            _log.info("retention_swept", content_removed=removed, jobs_forgotten=forgotten)
        return max(removed, forgotten) < BATCH
