"""Bodies and queries of `/v1/videos`, field by field as OpenAI's last schema has them.

OpenAI switched its own Videos API off in September 2026; this is what self-hosted servers and the
SDKs still speak. Null means the default. Fields that are not listed are ignored.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from gateway.schemas.images import DegradedSteps, Extensions, ImageReference, Prompt

MAX_FPS: Final = 120
MAX_PAGE: Final = 100
Status = Literal["queued", "in_progress", "completed", "failed"]
Phase = Literal["queued", "encode", "diffuse", "decode"]
Variant = Literal["video", "thumbnail", "spritesheet"]


Strength = Annotated[float, msgspec.Meta(gt=0, le=1)]


class VideoBody(Extensions, frozen=True, kw_only=True):
    """A request for one video. `frames`, `fps` and `strength` are extensions of ours, too.

    In a form `input_reference` is a file.
    """

    prompt: Prompt | None = None
    model: str | None = None
    seconds: str | int | float | None = None
    size: str | None = None
    input_reference: ImageReference | None = None
    frames: Annotated[int, msgspec.Meta(ge=1)] | None = None
    fps: Annotated[int, msgspec.Meta(ge=1, le=MAX_FPS)] | None = None
    strength: Strength | None = None
    user: str | None = None
    safety_identifier: str | None = None


class RemixBody(Extensions, frozen=True, kw_only=True):
    """A request to make a video again as another prompt says; `strength` is ours."""

    prompt: Prompt | None = None
    strength: Strength | None = None


class VideoReference(msgspec.Struct, frozen=True, kw_only=True):
    """A completed video of the caller's."""

    id: str | None = None


class VideoEditBody(RemixBody, frozen=True, kw_only=True):
    """A request to change a video, which is named: uploaded videos are refused."""

    video: VideoReference | None = None


class VideoExtendBody(VideoEditBody, frozen=True, kw_only=True):
    """A request to make a video longer."""

    seconds: str | int | float | None = None


class CharacterBody(msgspec.Struct, frozen=True, kw_only=True):
    """A request to remember a character out of the file `video`."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=80)] | None = None


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

    `frames` and what follows are extensions of ours: `phase` is what is being done, `step` of
    `steps` how many denoise steps are done, `eta_s` the seconds that are left if nothing waits.
    `expires_at` is when a finished video's files are removed. `degraded` is null unless it does
    fewer steps than wished.
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
    phase: Phase | None
    step: int
    steps: int
    eta_s: float | None
    degraded: DegradedSteps | None
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
