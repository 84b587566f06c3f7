"""Making images for a caller who waits: admit the job, follow it, hand over what it made.

Sits between the HTTP handler and the job service; knows no engine but by its port.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from gateway.errors import JobTimeoutError, failure_of
from gateway.jobs.record import Job
from gateway.jobs.state import JobStatus
from gateway.schemas.images import Image
from gateway.translate import generation_request

if TYPE_CHECKING:
    from gateway.admission import Admission, Caller
    from gateway.artifacts import ArtifactService
    from gateway.engine_client import Catalogue
    from gateway.jobs.service import JobService
    from gateway.schemas.images import ImageGenerationBody


class ImageService:
    """Images as jobs."""

    def __init__(
        self,
        *,
        engine: Catalogue,
        jobs: JobService,
        artifacts: ArtifactService,
        admission: Admission,
        timeout_s: float,
    ) -> None:
        """Let callers wait for `timeout_s` seconds at most."""
        self._engine = engine
        self._admission = admission
        self._jobs = jobs
        self._artifacts = artifacts
        self._timeout_s = timeout_s

    async def admit(self, body: ImageGenerationBody, caller: Caller) -> Job:
        """Check a body and write its job down."""
        return await self._admission.admit(
            lambda origin: generation_request(body, self._engine.specs, origin),
            caller,
            timeout_s=self._timeout_s,
        )

    async def follow(self, job: Job, *, caller_left: Awaitable[None]) -> Job:
        """Return the completed job; if the caller leaves or time is up, the work stops.

        Raises:
            GatewayError: the job ended in any other way.
        """
        until_s = job.request.arrival_s + self._timeout_s
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
