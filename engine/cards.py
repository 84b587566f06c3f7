"""`trident.json` in a model folder: what its owner says of defaults, limits and large pictures."""

from __future__ import annotations

from pathlib import Path

import msgspec

from engine.errors import PipelineError

MAX_STEPS = 200


class Defaults(msgspec.Struct, frozen=True):
    """What a request gets when it does not say; None means the family's default."""

    width_px: int | None = None
    height_px: int | None = None
    frames: int | None = None
    fps: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None


class Limits(msgspec.Struct, frozen=True):
    """How small and how large an output of this model may be; pixels are per frame."""

    min_pixels: int = 1
    max_pixels: int = 4_194_304
    max_frames: int = 129
    max_steps: int = MAX_STEPS


class ServingCard(msgspec.Struct, frozen=True):
    """The file. Pictures of more pixels than `tiled_above_pixels` are decoded in tiles.

    None leaves that to `engine.tiling`.
    """

    defaults: Defaults = Defaults()
    limits: Limits = Limits()
    tiled_above_pixels: int | None = None
    description: str = ""


def read_card(folder: Path) -> ServingCard:
    """Read a model folder's card; without one everything is as usual.

    Raises:
        PipelineError: it is malformed.
    """
    path = folder / "trident.json"
    if not path.exists():
        return ServingCard()
    try:
        return msgspec.json.decode(path.read_bytes(), type=ServingCard)
    except (OSError, msgspec.MsgspecError) as error:
        message = f"{path} is malformed: {error}."
        raise PipelineError(message) from error
