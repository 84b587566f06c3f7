"""`/v1/jobs`: the jobs behind pictures and videos, in our own words. An extension of ours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from litestar import Controller, Request, Response, delete, get, post
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath
from litestar.response import ServerSentEvent, ServerSentEventMessage

from gateway.api.base_url import base_url_of
from gateway.api.body import asks, query
from gateway.job_views import JobViews, Viewer
from gateway.schemas.jobs import Job, JobDeleted, JobList, JobListQuery, Schedule
from gateway.server_timing import HEADER, server_timing_of_wire


async def viewer(request: Request[Any, Any, Any]) -> Viewer:
    """Return who looks at jobs."""
    return Viewer(request.user.tenant, base_url_of(request))


class JobController(Controller):
    """Jobs."""

    path = "/jobs"
    tags = ("jobs",)
    dependencies = {"viewer": Provide(viewer)}  # noqa: RUF012 - litestar reads it from the class

    @get(
        operation_class=asks(JobListQuery),
        dependencies={"wanted": Provide(query(JobListQuery), sync_to_thread=False)},
    )
    async def list_jobs(
        self,
        wanted: NamedDependency[JobListQuery],
        viewer: NamedDependency[Viewer],
        views: NamedDependency[JobViews],
    ) -> JobList:
        """List your jobs."""
        return await views.page(wanted, viewer)

    @get("/{job_id:str}")
    async def retrieve(
        self,
        job_id: FromPath[str],
        viewer: NamedDependency[Viewer],
        views: NamedDependency[JobViews],
    ) -> Response[Job]:
        """Return a job: its place in the queue, when it should be finished, its stages."""
        job = await views.show(job_id, viewer)
        is_over = job.finished_at is not None
        return Response(job, headers={HEADER: server_timing_of_wire(job)} if is_over else {})

    @get("/{job_id:str}/schedule")
    async def schedule(
        self,
        job_id: FromPath[str],
        viewer: NamedDependency[Viewer],
        views: NamedDependency[JobViews],
    ) -> Schedule:
        """Explain what the scheduler decided about a job, and what else it could have done."""
        return await views.explain(job_id, viewer)

    @post("/{job_id:str}/cancel", status_code=200)
    async def cancel(
        self,
        job_id: FromPath[str],
        viewer: NamedDependency[Viewer],
        views: NamedDependency[JobViews],
    ) -> Job:
        """Stop a job: at once if it waits, at its next step if it runs."""
        return await views.cancel(job_id, viewer)

    @delete("/{job_id:str}", status_code=200)
    async def remove(
        self,
        job_id: FromPath[str],
        viewer: NamedDependency[Viewer],
        views: NamedDependency[JobViews],
    ) -> JobDeleted:
        """Stop a job if it is not over, and remove it with its files."""
        await views.delete(job_id, viewer)
        return JobDeleted(id=job_id)

    @get("/{job_id:str}/events", media_type="text/event-stream")
    async def events(
        self,
        job_id: FromPath[str],
        viewer: NamedDependency[Viewer],
        views: NamedDependency[JobViews],
    ) -> ServerSentEvent:
        """Stream a job's changes until it is over: events named `job`, each with the whole job."""
        return ServerSentEvent(_messages(await views.follow(job_id, viewer)))


async def _messages(changes: AsyncIterator[Job | None]) -> AsyncIterator[ServerSentEventMessage]:
    async for job in changes:
        if job is None:
            yield ServerSentEventMessage(comment="keep-alive", data=None)
        else:
            yield ServerSentEventMessage(event="job", data=msgspec.json.encode(job).decode())
