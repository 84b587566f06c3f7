"""`/healthz`: the process answers. `/readyz`: a request would succeed now. Both without a key."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog
from litestar import Controller, Response, get
from litestar.di import NamedDependency

from gateway.middleware import QUIET
from gateway.schemas.models import Health, Readiness

RETRY_S: Final = 1.0
_log = structlog.get_logger(__name__)


class Probes:
    """What must hold for a request to succeed."""

    def __init__(
        self,
        *,
        reasons: Sequence[Callable[[], tuple[str, ...]]],
        notices: Callable[[], tuple[str, ...]],
        writable: Sequence[tuple[str, Callable[[], Awaitable[None]]]],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Know whom to ask.

        `reasons` are asked for what is not ready, `notices` for what else an operator should know;
        `writable` is tried, by name, at most once in `RETRY_S`: who asks needs no key.
        """
        self.notices, self._reasons = notices, reasons
        self._writable, self._now = writable, now
        self._tried_s = 0.0
        self._trying: asyncio.Task[tuple[str, ...]] | None = None

    async def unmet(self) -> tuple[str, ...]:
        """Return every reason why a request would not succeed now."""
        is_due = self._now() >= self._tried_s + RETRY_S
        if self._trying is None or (self._trying.done() and is_due):
            self._tried_s = self._now()
            self._trying = asyncio.create_task(self._unwritable(), name="readiness")
        unwritable = await asyncio.shield(self._trying)
        return (*(reason for ask in self._reasons for reason in ask()), *unwritable)

    async def _unwritable(self) -> tuple[str, ...]:
        found = []
        for name, attempt in self._writable:
            try:
                await attempt()
            except Exception as error:  # noqa: BLE001 - whatever it is, we are not ready
                _log.warning("not_writable", store=name, reason=str(error))
                found.append(f"The {name} cannot be written.")
        return tuple(found)


class HealthController(Controller):
    """Liveness and readiness, for people, load balancers and orchestrators."""

    tags = ("health",)
    opt = {QUIET: True}  # noqa: RUF012 - litestar reads it from the class

    @get("/healthz")
    async def healthz(self) -> Health:
        """Return 200 as long as the process answers."""
        return Health()

    @get("/readyz")
    async def readyz(self, probes: NamedDependency[Probes]) -> Response[Readiness]:
        """Return 200 only when a request would succeed; otherwise 503 with the reasons."""
        reasons = await probes.unmet()
        status = 503 if reasons else 200
        readiness = Readiness(not reasons, reasons, probes.notices())
        return Response(readiness, status_code=status)
