"""`/v1/videos`: jobs that clients ask about, instead of waiting for an answer."""

from __future__ import annotations

from typing import Any, Final

from litestar import Controller, HttpMethod, Request, Response, delete, get, post, route
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath

from gateway.api.body import FORM, JSON, asks, json_or_form_body, query, takes
from gateway.api.caller import caller_of
from gateway.api.content import content_response
from gateway.artifacts import ArtifactService
from gateway.errors import RequestError
from gateway.http import MAX_FORM_BYTES
from gateway.schemas.videos import (
    Video,
    VideoBody,
    VideoContentQuery,
    VideoDeleted,
    VideoList,
    VideoListQuery,
)
from gateway.translate_videos import video_list, video_of
from gateway.videos import VideoService

POLL_HEADER: Final = "openai-poll-after-ms"


class VideoController(Controller):
    """Videos."""

    path = "/videos"
    tags = ("videos",)

    @post(
        status_code=200,
        operation_class=takes(VideoBody, FORM, JSON),
        dependencies={"wanted": Provide(json_or_form_body(VideoBody))},
        request_max_body_size=MAX_FORM_BYTES,
    )
    async def create(
        self,
        request: Request[Any, Any, Any],
        wanted: NamedDependency[VideoBody],
        videos: NamedDependency[VideoService],
    ) -> Video:
        """Begin a video; it goes on when the caller leaves."""
        return video_of(await videos.admit(wanted, caller_of(request)))

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
        return Response(video_of(job), headers={POLL_HEADER: str(videos.poll_after_ms(job))})

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
        media_type="video/mp4",
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
        """Return the bytes of a completed video, or a range of them."""
        artifact = await videos.file(video_id, wanted.variant, request.user.tenant)
        return await content_response(
            request,
            artifact,
            artifacts,
            name=f"{video_id}.mp4",
            cache_control="private, no-cache",  # it may be deleted
        )

    @post(["/edits", "/extensions", "/characters"], include_in_schema=False)
    async def refuse(self, request: Request[Any, Any, Any]) -> None:
        """Refuse what the schema knows and we do not do yet, by name."""
        raise _not_yet(request)

    @post("/{video_id:str}/remix", include_in_schema=False)
    async def refuse_remix(self, request: Request[Any, Any, Any], video_id: FromPath[str]) -> None:
        """Refuse remixes by name."""
        del video_id
        raise _not_yet(request)


def _not_yet(request: Request[Any, Any, Any]) -> RequestError:
    name = request.url.path.rstrip("/").rpartition("/")[2]
    message = (
        f"'{name}' of videos is not available here yet; POST /v1/videos makes videos from a prompt."
    )
    return RequestError(message, code="unsupported_operation")
