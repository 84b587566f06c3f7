"""Making images for a caller who waits: admit the job, follow it, hand over what it made.

Sits between the HTTP handler and the job service; knows no engine but by its port.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final

from gateway.admission import Terms
from gateway.errors import JobCancelledError, JobTimeoutError, failure_of
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


_KEYED_GRACE_S: Final = 10.0
_SDK_GRACE_S: Final = 2.0  # the SDKs wait half a second, then one


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
            body,
            Terms(timeout_s=self._timeout_s, deadline_ms=body.deadline_ms, waits=True),
        )

    async def follow(self, job: Job, caller: Caller, *, caller_left: Awaitable[None]) -> Job:
        """Return the completed job; if nobody waits any longer or time is up, the work stops.

        A caller who may send the request again has a moment to do so first.

        Raises:
            GatewayError: the job ended in any other way.
        """
        until_s = min(job.request.arrival_s + self._timeout_s, job.expires_at_s)
        waiting = asyncio.create_task(self._jobs.wait(job.id, job.tenant, until_s=until_s))
        leaving = asyncio.ensure_future(caller_left)
        try:
            await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return _completed(waiting.result())
            await self._jobs.leave(job, grace_s=_grace_s(caller))
            raise JobCancelledError(job.id)
        except (JobTimeoutError, asyncio.CancelledError) as error:
            grace_s = 0.0 if isinstance(error, JobTimeoutError) else _grace_s(caller)
            await self._jobs.leave(job, grace_s=grace_s)
            raise
        finally:
            waiting.cancel()
            leaving.cancel()
            await asyncio.gather(waiting, leaving, return_exceptions=True)

    async def embed(self, job: Job) -> tuple[Image, ...]:
        """Return the images with their bytes."""
        contents = [await self._artifacts.content(artifact) for artifact in job.artifacts]
        return tuple(
            Image(b64_json=base64.b64encode(content).decode("ascii")) for content in contents
        )

    def link(self, job: Job, base_url: str) -> tuple[Image, ...]:
        """Return the images as links, under `base_url` unless the store makes its own."""
        return tuple(
            Image(url=self._artifacts.url(artifact, base_url)) for artifact in job.artifacts
        )


def _grace_s(caller: Caller) -> float:
    """Return how long a caller who has left may take to send the same request again."""
    if caller.idempotency_key is not None:
        return _KEYED_GRACE_S
    return 0.0 if caller.retry_count is None else _SDK_GRACE_S


def _completed(job: Job) -> Job:
    if job.status is not JobStatus.COMPLETED:
        raise failure_of(job)
    return job
