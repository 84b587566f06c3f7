"""Making images for a caller who waits: admit the job, follow it, hand over what it made.

Sits between the HTTP handler and the job service; knows no engine but by its port.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.errors import JobTimeoutError, failure_of
from gateway.jobs.record import Job, NewJob, new_job_id
from gateway.jobs.state import JobStatus
from gateway.schemas.images import Image
from gateway.translate import Origin, generation_request

if TYPE_CHECKING:
    from engine.ports import Clock
    from gateway.artifacts import ArtifactService
    from gateway.auth.principal import Principal
    from gateway.engine_client import EngineClient
    from gateway.jobs.service import JobService
    from gateway.schemas.images import ImageGenerationBody

_RANDOM_SEEDS: Final = 2**32


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What callers may expect: a deadline of `slo_scale` times the latency, and a hard end."""

    request_timeout_s: float
    slo_scale: float


class ImageService:
    """Images as jobs."""

    def __init__(
        self,
        *,
        engine: EngineClient,
        jobs: JobService,
        artifacts: ArtifactService,
        clock: Clock,
        terms: Terms,
    ) -> None:
        """Join what a request needs on its way."""
        self._engine = engine
        self._jobs = jobs
        self._artifacts = artifacts
        self._clock = clock
        self._terms = terms

    async def admit(
        self,
        body: ImageGenerationBody,
        principal: Principal,
        *,
        request_id: str,
        traceparent: str | None,
    ) -> Job:
        """Check a body and write its job down; work starts when a runner leases it."""
        origin = Origin(
            job=new_job_id(),
            tenant=principal.tenant,
            arrival_s=self._clock.now(),
            random_seed=secrets.randbelow(_RANDOM_SEEDS),
        )
        request = generation_request(body, self._engine.specs, origin)
        slack_s = self._terms.slo_scale * self._engine.latency_s(request)
        new = NewJob(
            id=origin.job,
            tenant=principal.tenant,
            request=msgspec.structs.replace(request, deadline_s=origin.arrival_s + slack_s),
            request_id=request_id,
            traceparent=traceparent,
            expires_at_s=origin.arrival_s + self._terms.request_timeout_s,
        )
        return await self._jobs.submit(new)

    async def follow(self, job: Job, *, caller_left: Awaitable[None]) -> Job:
        """Return the completed job; if the caller leaves or time is up, the work stops.

        Raises:
            GatewayError: the job ended in any other way.
        """
        until_s = job.request.arrival_s + self._terms.request_timeout_s
        leaving = asyncio.create_task(self._cancel_after(caller_left, job))
        try:
            return _completed(await self._jobs.wait(job.id, job.tenant, until_s=until_s))
        except (JobTimeoutError, asyncio.CancelledError):
            await self._jobs.cancel(job.id, job.tenant)
            raise
        finally:
            leaving.cancel()

    async def _cancel_after(self, caller_left: Awaitable[None], job: Job) -> None:
        await caller_left
        await self._jobs.cancel(job.id, job.tenant)

    async def embed(self, job: Job) -> tuple[Image, ...]:
        """Return the images with their bytes."""
        contents = [await self._artifacts.content(artifact) for artifact in job.artifacts]
        return tuple(
            Image(b64_json=base64.b64encode(content).decode("ascii")) for content in contents
        )

    def link(self, job: Job, base_url: str) -> tuple[Image, ...]:
        """Return the images as links under `base_url`."""
        return tuple(
            Image(url=base_url + self._artifacts.link(artifact).path) for artifact in job.artifacts
        )


def _completed(job: Job) -> Job:
    if job.status is not JobStatus.COMPLETED:
        raise failure_of(job)
    return job
