"""Bodies of `/v1/models` and of the health routes."""

from __future__ import annotations

from typing import Literal

import msgspec


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is served; `created` is when its folder was made, in Unix seconds.

    `modality` and what follows are extensions of ours: what it makes and out of what, how large
    and how long, and in how many steps. Sides are multiples of `size_multiple_px`.
    """

    id: str
    created: int
    owned_by: str
    modality: Literal["image", "video"]
    inputs: tuple[Literal["text", "image", "video"], ...]
    default_size: str
    size_multiple_px: int
    max_side_px: int
    max_pixels: int
    default_frames: int
    max_frames: int
    default_fps: int | None
    default_steps: int
    max_steps: int
    uses_negative_prompt: bool
    description: str
    object: Literal["model"] = "model"


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """All models; there are no pages."""

    data: tuple[Model, ...]
    object: Literal["list"] = "list"


class Health(msgspec.Struct, frozen=True):
    """The process is up."""

    status: Literal["ok"] = "ok"


class Readiness(msgspec.Struct, frozen=True):
    """Whether a request would succeed now; if not, every reason why.

    `notices` are what an operator should look at all the same, such as devices in quarantine.
    """

    ready: bool
    reasons: tuple[str, ...]
    notices: tuple[str, ...] = ()
