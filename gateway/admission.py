"""From a checked wish to a durable job: the one way in, for pictures and videos alike."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.auth.principal import TenantId
from gateway.jobs.record import Job, NewJob, new_job_id
from gateway.resolve import Origin

if TYPE_CHECKING:
    from engine import GenerationRequest
    from engine.ports import Clock
    from gateway.engine_client import Catalogue
    from gateway.jobs.service import JobService

_RANDOM_SEEDS: Final = 2**32


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """On whose behalf a job is made, and the request and trace that asked for it."""

    tenant: TenantId
    request_id: str
    traceparent: str | None


class Admission:
    """Writes jobs down; work starts when a runner leases them."""

    def __init__(
        self, *, engine: Catalogue, jobs: JobService, clock: Clock, slo_scale: float
    ) -> None:
        """Give each job a deadline of `slo_scale` times what it takes alone."""
        self._engine = engine
        self._jobs = jobs
        self._clock = clock
        self._slo_scale = slo_scale

    async def admit(
        self, wish: Callable[[Origin], GenerationRequest], caller: Caller, *, timeout_s: float
    ) -> Job:
        """Turn a wish into a job that has to be begun within `timeout_s` seconds.

        Raises:
            OverloadedError: the queue is full.
        """
        origin = Origin(
            job=new_job_id(),
            tenant=caller.tenant,
            arrival_s=self._clock.now(),
            random_seed=secrets.randbelow(_RANDOM_SEEDS),
        )
        request = wish(origin)
        slack_s = self._slo_scale * self._engine.latency_s(request)
        new = NewJob(
            id=origin.job,
            tenant=caller.tenant,
            request=msgspec.structs.replace(request, deadline_s=origin.arrival_s + slack_s),
            request_id=caller.request_id,
            traceparent=caller.traceparent,
            expires_at_s=origin.arrival_s + timeout_s,
        )
        return await self._jobs.submit(new)
