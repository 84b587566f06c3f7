"""Videos as jobs that go on when their caller leaves: make, remix, find, list, delete, read.

Sits between the HTTP handlers and the job table; everything is scoped to the caller's tenant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from engine import InvalidRequestError, Modality, Shape
from gateway.admission import Terms
from gateway.errors import MissingError, RequestError
from gateway.jobs.record import Job, JobId, StoredArtifact, job_of_video
from gateway.jobs.state import JobStatus
from gateway.jobs.store import PageQuery
from gateway.resolve import fitting_size, model_for, sent, size_for
from gateway.translate_videos import Start, remix_request, rest_s, video_request
from gateway.uploads import Darkroom, Picture, Size

if TYPE_CHECKING:
    from gateway.admission import Admission, Caller
    from gateway.artifacts import ArtifactService
    from gateway.auth.principal import TenantId
    from gateway.engine_client import Catalogue
    from gateway.jobs.service import JobService
    from gateway.schemas.images import Extensions
    from gateway.schemas.videos import RemixBody, Variant, VideoBody, VideoListQuery


class Page(msgspec.Struct, frozen=True):
    """Some of a tenant's videos, and whether there are more beyond them."""

    jobs: tuple[Job, ...]
    has_more: bool


class VideoService:
    """Videos on behalf of callers."""

    def __init__(
        self,
        *,
        engine: Catalogue,
        admission: Admission,
        jobs: JobService,
        artifacts: ArtifactService,
        timeout_s: float,
    ) -> None:
        """Give up videos that have waited for `timeout_s` seconds."""
        self._engine = engine
        self._admission = admission
        self._jobs = jobs
        self._artifacts = artifacts
        self._darkroom = Darkroom()
        self._timeout_s = timeout_s

    async def admit(self, body: VideoBody, caller: Caller, reference: Picture | None) -> Job:
        """Check a body and the picture that it begins with, and write its job down.

        Raises:
            RequestError: the picture is damaged, or of another size than the video.
        """
        size, start = None, None
        if reference is not None:
            size = self._size_of(body, reference)
            content = await self._darkroom.source(reference, Size(size.width_px, size.height_px))
            start = Start(content=content)
        return await self._admission.admit(
            lambda origin: video_request(body, self._engine.specs, origin, size=size, start=start),
            caller,
            sent(body, reference and reference.content),
            self._terms(body),
        )

    def _terms(self, body: Extensions) -> Terms:
        return Terms(timeout_s=self._timeout_s, deadline_ms=body.deadline_ms)

    def _size_of(self, body: VideoBody, reference: Picture) -> Shape:
        """Return a video's size: the picture's, which has to be the size asked for, if any is."""
        spec = model_for(body.model, self._engine.specs, Modality.VIDEO, body.size)
        if body.size in {None, "auto"}:
            return fitting_size(*reference.size, spec)
        shape = size_for(body.size, spec)
        if (shape.width_px, shape.height_px) != reference.size:
            message = (
                f"The reference has {reference.size.width_px}x{reference.size.height_px} pixels "
                f"and the video {shape}; they must be the same."
            )
            raise RequestError(message, param="input_reference")
        return shape

    async def remix(self, body: RemixBody, video: str, caller: Caller) -> Job:
        """Write down a job that makes a completed video again, as another prompt says.

        Raises:
            MissingError: the tenant has no such video.
            RequestError: it is not completed.
            ModelNotFoundError: its model is not served any more.
        """
        file = await self.file(video, "video", caller.tenant)
        source = await self.find(video, caller.tenant)
        spec = model_for(source.request.model, self._engine.specs, Modality.VIDEO)
        start = Start(content=await self._artifacts.content(file), film=True, origin=video)
        return await self._admission.admit(
            lambda origin: remix_request(body, source, spec, origin, start),
            caller,
            sent(body, video.encode()),
            self._terms(body),
        )

    async def find(self, video: str, tenant: TenantId) -> Job:
        """Return a tenant's video.

        Raises:
            MissingError: the tenant has no such video.
        """
        job = await self._jobs.find(_job_of(video), tenant, Modality.VIDEO)
        if job is None:
            raise _missing(video)
        return job

    def eta_s(self, job: Job) -> float | None:
        """Return the seconds that a job still takes on idle devices; None if nobody knows."""
        latency_s = self._latency_s(job)
        return None if latency_s is None else rest_s(job, latency_s)

    def _latency_s(self, job: Job) -> float | None:
        """Return what a job takes alone; None if its model has gone or changed since."""
        if job.request.model not in self._engine.specs:
            return None
        try:
            return self._engine.latency_s(job.request)
        except InvalidRequestError:
            return None

    async def page(self, query: VideoListQuery, tenant: TenantId) -> Page:
        """Return videos in the order asked for.

        Raises:
            RequestError: `after` is no id of a video.
        """
        after = None if query.after is None else job_of_video(query.after)
        if query.after is not None and after is None:
            message = f"Invalid value for 'after': '{query.after}' is no id of a video."
            raise RequestError(message, code="invalid_value", param="after")
        jobs = await self._jobs.page(
            PageQuery(
                tenant=tenant,
                modality=Modality.VIDEO,
                limit=query.limit + 1,
                after=after,
                newest_first=query.order == "desc",
            )
        )
        return Page(tuple(jobs[: query.limit]), len(jobs) > query.limit)

    async def delete(self, video: str, tenant: TenantId) -> None:
        """Stop a video if it is being made, and remove it with its bytes.

        Raises:
            MissingError: the tenant has no such video.
        """
        job = await self._jobs.delete(_job_of(video), tenant, Modality.VIDEO)
        if job is None:
            raise _missing(video)
        await self._artifacts.remove_all(job.id)

    async def file(self, video: str, variant: Variant, tenant: TenantId) -> StoredArtifact:
        """Return which file a video's variant is.

        Raises:
            MissingError: the tenant has no such video, or its bytes were removed.
            RequestError: the video is not completed.
        """
        job = await self.find(video, tenant)
        if job.status is not JobStatus.COMPLETED:
            message = f"Video {video} has no content: it is not completed. Look at its 'status'."
            raise RequestError(message, code="video_not_completed")
        if not job.artifacts:
            message = f"The content of video {video} has expired; its 'expires_at' has passed."
            raise MissingError(message, code="content_expired")
        film = job.artifacts[0]
        return film if variant == "video" else await self._artifacts.view(film, variant)


def _job_of(video: str) -> JobId:
    job = job_of_video(video)
    if job is None:
        raise _missing(video)
    return job


def _missing(video: str) -> MissingError:
    return MissingError(f"No video with the id '{video}' exists. GET /v1/videos lists yours.")
