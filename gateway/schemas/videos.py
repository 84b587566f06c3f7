"""Bodies and queries of `/v1/videos`, field by field as OpenAI's last schema has them.

OpenAI switched its own Videos API off in September 2026; this is what self-hosted servers and the
SDKs still speak. Null means the default. Fields that are not listed are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from gateway.schemas.images import MAX_DEADLINE_MS, MAX_GUIDANCE, MAX_PROMPT, MAX_SEED, Prompt

MAX_FPS: Final = 120
MAX_PAGE: Final = 100
Status = Literal["queued", "in_progress", "completed", "failed"]
Variant = Literal["video", "thumbnail", "spritesheet"]


class VideoBody(msgspec.Struct, frozen=True, kw_only=True):
    """A request for one video. `frames` and the fields after it are extensions of ours."""

    prompt: Prompt | None = None
    model: str | None = None
    seconds: str | int | float | None = None
    size: str | None = None
    input_reference: Any = None  # whatever it is, it is refused
    frames: Annotated[int, msgspec.Meta(ge=1)] | None = None
    fps: Annotated[int, msgspec.Meta(ge=1, le=MAX_FPS)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, le=MAX_SEED)] | None = None
    negative_prompt: Annotated[str, msgspec.Meta(max_length=MAX_PROMPT)] | None = None
    num_inference_steps: Annotated[int, msgspec.Meta(ge=1)] | None = None
    guidance_scale: Annotated[float, msgspec.Meta(ge=0, le=MAX_GUIDANCE)] | None = None
    deadline_ms: Annotated[int, msgspec.Meta(ge=1, le=MAX_DEADLINE_MS)] | None = None


class VideoListQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which videos to list: up to `limit`, beyond the video `after`."""

    after: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=0, le=MAX_PAGE)] = 20
    order: Literal["asc", "desc"] = "desc"


class VideoContentQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which of a video's files to answer with."""

    variant: Variant = "video"


class VideoError(msgspec.Struct, frozen=True):
    """Why a video failed; `param` names the parameter at fault, if there is one."""

    code: str
    message: str
    param: str | None = None


class Video(msgspec.Struct, frozen=True, kw_only=True):
    """A video job: all of OpenAI's keys are always there.

    `frames`, `fps` and `seed` are extensions of ours. `expires_at` is when a finished video's
    files are removed.
    """

    id: str
    status: Status
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None
    model: str
    prompt: str | None
    size: str
    seconds: str
    remixed_from_video_id: str | None
    error: VideoError | None
    frames: int
    fps: int
    seed: int
    object: Literal["video"] = "video"


class VideoList(msgspec.Struct, frozen=True, kw_only=True):
    """One page; `after=last_id` asks for the next one."""

    data: tuple[Video, ...]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class VideoDeleted(msgspec.Struct, frozen=True, kw_only=True):
    """A video that is gone."""

    id: str
    deleted: Literal[True] = True
    object: Literal["video.deleted"] = "video.deleted"
