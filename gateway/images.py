"""Making images for a caller who waits: admit the job, follow it, hand over what it made.

Sits between the HTTP handler and the job service; knows no engine but by its port.
"""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import TYPE_CHECKING

from engine import Modality
from gateway.admission import Terms
from gateway.errors import JobCancelledError, JobTimeoutError, failure_of
from gateway.jobs.record import Job
from gateway.jobs.state import TERMINAL, JobStatus
from gateway.resolve import fitting_size, model_for, sent, size_for
from gateway.schemas.images import Image
from gateway.translate import (
    Edit,
    completed_event,
    edit_request,
    generation_request,
    partial_event,
    strength_of,
)
from gateway.uploads import Darkroom, Picture, Size

if TYPE_CHECKING:
    from gateway.admission import Admission, Caller
    from gateway.artifacts import ArtifactService
    from gateway.engine_client import Catalogue
    from gateway.jobs.events import Look
    from gateway.jobs.previews import PreviewStore
    from gateway.jobs.service import JobService
    from gateway.schemas.images import (
        ImageEditBody,
        ImageEvent,
        ImageFields,
        ImageGenerationBody,
        ImageVariationBody,
    )


class ImageService:
    """Images as jobs."""

    def __init__(
        self,
        *,
        engine: Catalogue,
        jobs: JobService,
        artifacts: ArtifactService,
        previews: PreviewStore,
        admission: Admission,
        timeout_s: float,
    ) -> None:
        """Let callers wait for `timeout_s` seconds at most."""
        self._engine = engine
        self._admission = admission
        self._jobs = jobs
        self._artifacts = artifacts
        self._previews = previews
        self._darkroom = Darkroom()
        self._timeout_s = timeout_s
        self._leaving: set[asyncio.Task[None]] = set()

    async def admit(self, body: ImageGenerationBody, caller: Caller) -> Job:
        """Check a body and write its job down."""
        return await self._admission.admit(
            lambda origin: generation_request(body, self._engine.specs, origin),
            caller,
            body,
            self._terms(body),
        )

    def _terms(self, body: ImageFields) -> Terms:
        return Terms(timeout_s=self._timeout_s, deadline_ms=body.deadline_ms, waits=True)

    async def admit_edit(
        self,
        body: ImageEditBody | ImageVariationBody,
        picture: Picture,
        mask: Picture | None,
        caller: Caller,
    ) -> Job:
        """Check a body and its pictures, and write its job down.

        Raises:
            RequestError: a picture is damaged, or the mask does not fit it.
        """
        spec = model_for(body.model, self._engine.specs, Modality.IMAGE, body.size)
        if body.size in {None, "auto"}:
            shape = fitting_size(*picture.size, spec)
        else:
            shape = size_for(body.size, spec)
        size = Size(shape.width_px, shape.height_px)
        edit = Edit(
            shape=shape,
            image=await self._darkroom.source(picture, size),
            mask=mask and await self._darkroom.mask(mask, picture.size, size),
            strength=strength_of(body, masked=mask is not None),
        )
        return await self._admission.admit(
            lambda origin: edit_request(body, spec, edit, origin),
            caller,
            sent(body, picture.content, mask and mask.content),
            self._terms(body),
        )

    async def follow(self, job: Job, caller: Caller, *, caller_left: Awaitable[None]) -> Look:
        """Return the completed job; if nobody waits any longer or time is up, the work stops.

        A caller who may send the request again has a moment to do so first.

        Raises:
            GatewayError: the job ended in any other way.
        """
        leaving = asyncio.ensure_future(caller_left)
        try:
            look = await self._jobs.wait(job, until_s=self._until_s(job), leaving=leaving)
            if look is not None:
                return _completed(look)
            await self._jobs.leave(job, grace_s=caller.grace_s)
            raise JobCancelledError(job.id)
        except (JobTimeoutError, asyncio.CancelledError) as error:
            grace_s = 0.0 if isinstance(error, JobTimeoutError) else caller.grace_s
            await self._jobs.leave(job, grace_s=grace_s)
            raise
        finally:
            leaving.cancel()

    def _until_s(self, job: Job) -> float:
        return min(job.request.arrival_s + self._timeout_s, job.expires_at_s)

    async def stream(
        self, job: Job, body: ImageFields, caller: Caller, *, prefix: str
    ) -> AsyncIterator[ImageEvent]:
        """Yield previews as they come and the finished images at the end.

        If whoever listens stops before, the work stops, too.

        Raises:
            GatewayError: the job did not complete.
        """
        seen: set[tuple[int, int]] = set()
        is_over = False
        try:
            async for now in self._jobs.wakes(job, until_s=self._until_s(job)):
                is_over = now.job.status in TERMINAL
                async for event in self._new_previews(now.job, body, prefix, seen):
                    yield event
            contents = await self._contents(_completed(now))
            for artifact, content in zip(now.job.artifacts, contents, strict=True):
                yield completed_event(
                    prefix, now.job, body, image_index=artifact.index, content=_text(content)
                )
        finally:
            self._spawn(self._leave(job, None if is_over else caller.grace_s))

    async def _new_previews(
        self, job: Job, body: ImageFields, prefix: str, seen: set[tuple[int, int]]
    ) -> AsyncIterator[ImageEvent]:
        """Yield what came since the last look, numbered by picture without gaps."""
        if not job.request.previews:
            return
        counts = Counter(image_index for image_index, _ in seen)
        for shown in await self._previews.unseen(job, seen):
            image_index = shown.image_index
            seen.add((image_index, shown.number))
            yield partial_event(
                prefix,
                job,
                body,
                image_index=image_index,
                number=counts[image_index],
                content=_text(shown.content),
            )
            counts[image_index] += 1

    async def _leave(self, job: Job, grace_s: float | None) -> None:
        if grace_s is not None:
            await self._jobs.leave(job, grace_s=grace_s)
        await self._previews.forget(job)

    def _spawn(self, work: Awaitable[None]) -> None:
        """Finish work although the request that began it is being cancelled."""
        task = asyncio.ensure_future(work)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def embed(self, completed: Look) -> tuple[Image, ...]:
        """Return the images with their bytes."""
        contents = await self._contents(completed)
        return tuple(Image(b64_json=_text(content)) for content in contents)

    async def _contents(self, completed: Look) -> Sequence[bytes]:
        """Return a completed job's files: what came with its end, or what the store has."""
        if completed.contents:
            return completed.contents
        return [await self._artifacts.content(artifact) for artifact in completed.job.artifacts]

    def link(self, job: Job, base_url: str) -> tuple[Image, ...]:
        """Return the images as links, under `base_url` unless the store makes its own."""
        return tuple(
            Image(url=self._artifacts.url(artifact, base_url)) for artifact in job.artifacts
        )


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _completed(look: Look) -> Look:
    if look.job.status is not JobStatus.COMPLETED:
        raise failure_of(look.job)
    return look
