"""`/healthz`: the process answers. `/readyz`: a request would succeed now. Both without a key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec
import structlog
from litestar import Controller, Response, get
from litestar.di import NamedDependency

from gateway.middleware import QUIET
from gateway.schemas.models import Health, Readiness

_log = structlog.get_logger(__name__)


class Probes(msgspec.Struct, frozen=True):
    """What must hold for a request to succeed.

    `reasons` are asked for what is not ready, `notices` for what else an operator should know;
    `writable` is tried, by name.
    """

    reasons: Sequence[Callable[[], tuple[str, ...]]]
    notices: Callable[[], tuple[str, ...]]
    writable: Sequence[tuple[str, Callable[[], Awaitable[None]]]]

    async def unmet(self) -> tuple[str, ...]:
        """Return every reason why a request would not succeed now."""
        unmet = [reason for ask in self.reasons for reason in ask()]
        for name, attempt in self.writable:
            try:
                await attempt()
            except Exception as error:  # noqa: BLE001 - whatever it is, we are not ready
                _log.warning("not_writable", store=name, reason=str(error))
                unmet.append(f"The {name} cannot be written.")
        return tuple(unmet)


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
