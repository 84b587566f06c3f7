"""Jobs as their owners see them in `/v1/jobs`: find, list, explain, follow, cancel, delete.

Sits between the HTTP handlers and the job table; everything is scoped to the caller's tenant.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

from engine import InvalidRequestError, Modality
from engine.eta import predict
from gateway.auth.principal import TenantId
from gateway.errors import MissingError, RequestError
from gateway.jobs.entry import Backlog
from gateway.jobs.record import JobId, job_of_video, key_of
from gateway.jobs.state import TERMINAL, JobStatus
from gateway.jobs.store import PageQuery
from gateway.translate_jobs import wire_job, wire_list, wire_schedule

if TYPE_CHECKING:
    from engine.eta import Prediction
    from engine.ports import Clock
    from gateway.artifacts import ArtifactService
    from gateway.engine_client import Catalogue
    from gateway.jobs.record import Job
    from gateway.jobs.service import JobService
    from gateway.schemas.jobs import Job as WireJob
    from gateway.schemas.jobs import JobList, JobListQuery, Schedule
    from gateway.translate_jobs import Link

_FINISHED: Final = 100
_NOTHING_BEFORE: Final = Backlog(0, 0, 0.0)


class Viewer(msgspec.Struct, frozen=True):
    """Who looks, and under which address links should lead here."""

    tenant: TenantId
    base_url: str


class JobViews:
    """Jobs on behalf of their owners."""

    def __init__(
        self, *, engine: Catalogue, jobs: JobService, artifacts: ArtifactService, clock: Clock
    ) -> None:
        """Predict with `engine`; read from `jobs`."""
        self._engine = engine
        self._jobs = jobs
        self._artifacts = artifacts
        self._clock = clock

    async def show(self, job_id: str, viewer: Viewer) -> WireJob:
        """Return a job with its place in the queue and when it should be finished.

        Raises:
            MissingError: the tenant has no such job.
        """
        return await self._shown(await self._find(job_id, viewer.tenant), viewer)

    async def page(self, query: JobListQuery, viewer: Viewer) -> JobList:
        """Return jobs in the order asked for.

        Raises:
            RequestError: `after` is no id of a job.
        """
        after = None if query.after is None else _job_id(query.after)
        if query.after is not None and after is None:
            message = f"Invalid value for 'after': '{query.after}' is no id of a job."
            raise RequestError(message, code="invalid_value", param="after")
        jobs = await self._jobs.page(
            PageQuery(
                tenant=viewer.tenant,
                modality=None if query.modality is None else Modality(query.modality),
                status=None if query.status is None else JobStatus(query.status),
                limit=query.limit + 1,
                after=after,
                newest_first=query.order == "desc",
            )
        )
        has_more = len(jobs) > query.limit
        return wire_list(jobs[: query.limit], self._link(viewer), has_more=has_more)

    async def explain(self, job_id: str, viewer: Viewer) -> Schedule:
        """Return why a job runs as it does; see `show` for what it raises."""
        job = await self._find(job_id, viewer.tenant)
        backlog, prediction = await self._outlook(job)
        return wire_schedule(job, backlog=backlog, prediction=prediction)

    async def cancel(self, job_id: str, viewer: Viewer) -> WireJob:
        """Stop a job, now or at its next step; one that is over stays as it is."""
        job = await self._find(job_id, viewer.tenant)
        return await self._shown(await self._jobs.cancel(job.id, job.tenant) or job, viewer)

    async def delete(self, job_id: str, viewer: Viewer) -> None:
        """Stop a job if it is not over, and remove it with its files."""
        job = await self._find(job_id, viewer.tenant)
        await self._jobs.delete(job.id, viewer.tenant)
        await self._artifacts.remove_all(job.id)

    async def follow(self, job_id: str, viewer: Viewer) -> AsyncIterator[WireJob | None]:
        """Return an iterator over a job's changes until it is over; None means that it lives.

        Raises:
            MissingError: the tenant has no such job.
        """
        job = await self._find(job_id, viewer.tenant)
        return self._changes(job.id, viewer)

    async def _changes(self, job_id: JobId, viewer: Viewer) -> AsyncIterator[WireJob | None]:
        async for job in self._jobs.changes(job_id, viewer.tenant):
            yield None if job is None else await self._shown(job, viewer)

    async def _find(self, job_id: str, tenant: TenantId) -> Job:
        found = _job_id(job_id)
        job = None if found is None else await self._jobs.find(found, tenant)
        if job is None:
            message = f"No job with the id '{job_id}' exists. GET /v1/jobs lists yours."
            raise MissingError(message)
        return job

    async def _shown(self, job: Job, viewer: Viewer) -> WireJob:
        backlog, prediction = await self._outlook(job)
        return wire_job(job, self._link(viewer), backlog=backlog, prediction=prediction)

    def _link(self, viewer: Viewer) -> Link:
        return lambda artifact: self._artifacts.url(artifact, viewer.base_url)

    async def _outlook(self, job: Job) -> tuple[Backlog | None, Prediction | None]:
        """Return what is before a job and when it should be finished; nothing if it is over."""
        if job.status in TERMINAL:
            return None, None
        rest_s = self._rest_s(job)
        if job.status is JobStatus.QUEUED:
            backlog = await self._jobs.backlog(job)
        else:
            backlog = _NOTHING_BEFORE
        prediction = predict(
            backlog.work_s, rest_s=rest_s, devices=self._engine.devices, now_s=self._clock.now()
        )
        return backlog, prediction

    def _rest_s(self, job: Job) -> float:
        """Return what a job still takes alone; by its prediction if its model has gone since."""
        alone_s = job.predicted_s or 0.0
        if job.request.model in self._engine.specs:
            with suppress(InvalidRequestError):  # the model has changed since
                alone_s = self._engine.latency_s(job.request)
        return alone_s * (1 - job.progress / _FINISHED)


def _job_id(text: str) -> JobId | None:
    """Return the job of an id, be it the job's or its video's; None if it is no id."""
    if (job := job_of_video(text)) is not None:
        return job
    return JobId(text) if key_of(JobId(text)) is not None else None
