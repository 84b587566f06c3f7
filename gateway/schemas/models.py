"""Bodies of `/v1/models` and of the health routes."""

from __future__ import annotations

from typing import Literal

import msgspec


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is served; `created` is when its folder was made, in Unix seconds.

    The last three are extensions of ours: what it makes, and how large it can be asked for.
    """

    id: str
    created: int
    owned_by: str
    modality: Literal["image", "video"]
    default_size: str
    max_frames: int
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
