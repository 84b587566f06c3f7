"""`/v1/videos`: jobs that clients ask about, instead of waiting for an answer."""

from __future__ import annotations

from typing import Any, Final

from litestar import Controller, HttpMethod, Request, Response, delete, get, post, route
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath

from gateway.api.body import FORM, JSON, Submission, asks, form_body, query, takes
from gateway.api.caller import caller_of
from gateway.api.content import content_response
from gateway.api.degraded import degraded_headers
from gateway.api.references import referred
from gateway.artifacts import ArtifactService
from gateway.errors import MissingError, RequestError
from gateway.http import MAX_UPLOAD_BYTES
from gateway.jobs.record import Job
from gateway.schemas.videos import (
    CharacterBody,
    RemixBody,
    Video,
    VideoBody,
    VideoContentQuery,
    VideoDeleted,
    VideoEditBody,
    VideoExtendBody,
    VideoList,
    VideoListQuery,
)
from gateway.server_timing import HEADER as TIMING_HEADER
from gateway.server_timing import server_timing
from gateway.translate_videos import poll_after_ms, video_list, video_of
from gateway.uploads import Picture, checked
from gateway.videos import VideoService
from gateway.wire import missing_parameter

_SUFFIXES: Final = {"video": "mp4", "thumbnail": "webp", "spritesheet": "jpg"}
POLL_HEADER: Final = "openai-poll-after-ms"


class VideoController(Controller):
    """Videos."""

    path = "/videos"
    tags = ("videos",)

    @post(
        status_code=200,
        operation_class=takes(VideoBody, FORM, JSON, files=("input_reference",)),
        dependencies={"sent": Provide(form_body(VideoBody, "input_reference", or_json=True))},
        request_max_body_size=MAX_UPLOAD_BYTES,
    )
    async def create(
        self,
        request: Request[Any, Any, Any],
        sent: NamedDependency[Submission[VideoBody]],
        videos: NamedDependency[VideoService],
    ) -> Response[Video]:
        """Begin a video; it goes on when the caller leaves."""
        job = await videos.admit(sent.body, caller_of(request), _reference(sent))
        return _begun(job, videos)

    @get(
        operation_class=asks(VideoListQuery),
        dependencies={"wanted": Provide(query(VideoListQuery), sync_to_thread=False)},
    )
    async def list_videos(
        self,
        request: Request[Any, Any, Any],
        wanted: NamedDependency[VideoListQuery],
        videos: NamedDependency[VideoService],
    ) -> VideoList:
        """List your videos."""
        page = await videos.page(wanted, request.user.tenant)
        return video_list(page.jobs, has_more=page.has_more)

    @get("/{video_id:str}")
    async def retrieve(
        self,
        request: Request[Any, Any, Any],
        video_id: FromPath[str],
        videos: NamedDependency[VideoService],
    ) -> Response[Video]:
        """Return a video's state, and when it is worth asking again."""
        job = await videos.find(video_id, request.user.tenant)
        eta_s = videos.eta_s(job)
        headers = {POLL_HEADER: str(poll_after_ms(job, eta_s=eta_s)), **degraded_headers(job)}
        if job.finished_s is not None:
            headers[TIMING_HEADER] = server_timing(job)
        return Response(video_of(job, eta_s=eta_s), headers=headers)

    @delete("/{video_id:str}", status_code=200)
    async def remove(
        self,
        request: Request[Any, Any, Any],
        video_id: FromPath[str],
        videos: NamedDependency[VideoService],
    ) -> VideoDeleted:
        """Stop a video if it is being made, and remove it."""
        await videos.delete(video_id, request.user.tenant)
        return VideoDeleted(id=video_id)

    @route(
        "/{video_id:str}/content",
        http_method=[HttpMethod.GET, HttpMethod.HEAD],
        status_code=200,
        media_type="application/octet-stream",
        operation_class=asks(VideoContentQuery),
        dependencies={"wanted": Provide(query(VideoContentQuery), sync_to_thread=False)},
    )
    async def content(
        self,
        request: Request[Any, Any, Any],
        video_id: FromPath[str],
        wanted: NamedDependency[VideoContentQuery],
        videos: NamedDependency[VideoService],
        artifacts: NamedDependency[ArtifactService],
    ) -> Response[bytes]:
        """Return the bytes of a completed video or of another view of it, or a range of them."""
        file = await videos.file(video_id, wanted.variant, request.user.tenant)
        return await content_response(
            request,
            file,
            artifacts,
            name=f"{video_id}.{_SUFFIXES[wanted.variant]}",
            cache_control="private, no-cache",  # it may be deleted
        )

    @post(
        "/{video_id:str}/remix",
        status_code=200,
        operation_class=takes(RemixBody, JSON, FORM),
        dependencies={"sent": Provide(form_body(RemixBody, or_json=True))},
    )
    async def remix(
        self,
        request: Request[Any, Any, Any],
        video_id: FromPath[str],
        sent: NamedDependency[Submission[RemixBody]],
        videos: NamedDependency[VideoService],
    ) -> Response[Video]:
        """Make a completed video again, as another prompt says."""
        return await _remixed(request, videos, sent.body, video_id)

    @post(
        "/edits",
        status_code=200,
        operation_class=takes(VideoEditBody, JSON, FORM),
        dependencies={"sent": Provide(form_body(VideoEditBody, or_json=True))},
        request_max_body_size=MAX_UPLOAD_BYTES,
    )
    async def edit(
        self,
        request: Request[Any, Any, Any],
        sent: NamedDependency[Submission[VideoEditBody]],
        videos: NamedDependency[VideoService],
    ) -> Response[Video]:
        """Make a completed video again, as another prompt says; it is named by its id."""
        return await _remixed(request, videos, sent.body, _named(sent.body))

    @post(
        "/extensions",
        status_code=200,
        operation_class=takes(VideoExtendBody, JSON, FORM),
        dependencies={"sent": Provide(form_body(VideoExtendBody, or_json=True))},
        request_max_body_size=MAX_UPLOAD_BYTES,
    )
    async def extend(
        self,
        request: Request[Any, Any, Any],
        sent: NamedDependency[Submission[VideoExtendBody]],
        videos: NamedDependency[VideoService],
    ) -> Video:
        """Refuse to make a video longer, once it is clear that it is there."""
        if sent.body.prompt is None:
            raise missing_parameter("prompt")
        await videos.find(_named(sent.body), request.user.tenant)
        raise _unable("make a video longer", "ask for more 'seconds' when you create it")

    @post(
        "/characters",
        status_code=200,
        operation_class=takes(CharacterBody, FORM, files=("video",)),
        dependencies={"sent": Provide(form_body(CharacterBody, "video"))},
        request_max_body_size=MAX_UPLOAD_BYTES,
    )
    async def create_character(self, sent: NamedDependency[Submission[CharacterBody]]) -> Video:
        """Refuse to remember a character."""
        if sent.body.name is None:
            raise missing_parameter("name")
        raise _unable("remember a character", "describe it in the prompt")

    @get("/characters/{character_id:str}")
    async def get_character(self, character_id: FromPath[str]) -> Video:
        """Say that there is no such character."""
        message = f"No character with the id '{character_id}' exists."
        raise MissingError(message)


def _reference(sent: Submission[VideoBody]) -> Picture | None:
    files = list(sent.files.get("input_reference", ()))
    if sent.body.input_reference is not None:
        files.append(referred(sent.body.input_reference, "input_reference"))
    if len(files) > 1:
        message = "There can only be one 'input_reference'."
        raise RequestError(message, code="invalid_value", param="input_reference")
    return checked(files[0], "input_reference") if files else None


def _named(body: VideoEditBody) -> str:
    if body.video is None or not body.video.id:
        raise missing_parameter("video")
    return body.video.id


async def _remixed(
    request: Request[Any, Any, Any], videos: VideoService, body: RemixBody, video_id: str
) -> Response[Video]:
    if body.prompt is None:
        raise missing_parameter("prompt")
    job = await videos.remix(body, video_id, caller_of(request))
    return _begun(job, videos)


def _begun(job: Job, videos: VideoService) -> Response[Video]:
    return Response(video_of(job, eta_s=videos.eta_s(job)), headers=degraded_headers(job))


def _unable(to: str, advice: str) -> RequestError:
    message = f"No model served here can {to}; {advice}."
    return RequestError(message, code="unsupported_operation")
