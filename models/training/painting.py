"""Draw a scene as pixels, by signed distances, so that every edge is smooth over one pixel.

Pixels are float32 in [-1, 1], laid out (H, W, 3), as the autoencoder takes them. Knows nothing of
captions: a scene says all there is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.training.outlines import distance
from models.training.vocabulary import COLOURS

if TYPE_CHECKING:
    from models.training.scenes import Scene, Thing

Picture: TypeAlias = NDArray[np.float32]

OUTLINE_WIDTH = 0.16
"""Of the band of an outlined object, as a share of its radius."""
LEAST_OUTLINE_PX = 2.0
STRIPE_PERIOD = 0.4
"""Height of one stripe in the colour and one in its second tone, as a share of the radius."""
_BRIGHT = 140
_TO_BLACK, _TO_WHITE = 0.45, 0.55


def draw(scene: Scene) -> Picture:
    """The scene as pixels."""
    half_px = min(scene.width_px, scene.height_px) / 2
    x = (np.arange(scene.width_px, dtype=np.float32) + 0.5 - scene.width_px / 2) / half_px
    y = (np.arange(scene.height_px, dtype=np.float32) + 0.5 - scene.height_px / 2) / half_px
    picture = np.empty((scene.height_px, scene.width_px, 3), np.float32)
    picture[:] = as_pixel(scene.background)
    for thing in scene.things:
        _paint(picture, thing, x, y, half_px)
    return picture


def as_pixel(colour: str) -> Picture:
    """A palette colour in [-1, 1]."""
    return np.asarray(COLOURS[colour], np.float32) / 127.5 - 1


def second_tone(colour: str) -> NDArray[np.float32]:
    """RGB, 0 to 255, of the stripes between those in the colour: darker if bright, or lighter."""
    rgb = np.asarray(COLOURS[colour], np.float32)
    bright = rgb.mean() > _BRIGHT
    return rgb * (1 - _TO_BLACK) if bright else rgb + (255 - rgb) * _TO_WHITE


def _paint(picture: Picture, thing: Thing, x: Picture, y: Picture, half_px: float) -> None:
    """Blend one object into the part of the picture that it covers."""
    reach = thing.radius * (math.sqrt(2) if thing.angle else 1) + 1.5 / half_px
    columns = np.flatnonzero(np.abs(x - thing.x) <= reach)
    rows = np.flatnonzero(np.abs(y - thing.y) <= reach)
    across = (x[columns][None, :] - np.float32(thing.x)) / np.float32(thing.radius)
    down = (y[rows][:, None] - np.float32(thing.y)) / np.float32(thing.radius)
    if thing.angle:
        across, down = turned(across, down, thing.angle)
    radius_px = thing.radius * half_px
    cover = _cover(thing, distance(thing.kind.shape, across, down) * radius_px, radius_px)
    window = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    window += cover[..., None] * (_tones(thing, down, radius_px) - window)


def turned(across: Picture, down: Picture, angle: float) -> tuple[Picture, Picture]:
    """Coordinates in the frame of an object turned clockwise by `angle` radians."""
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return across * cos + down * sin, down * cos - across * sin


def _cover(thing: Thing, gap_px: Picture, radius_px: float) -> Picture:
    """How much of each pixel the object covers; `gap_px` is the distance to its outline."""
    cover = np.clip(0.5 - gap_px, 0, 1)
    if thing.kind.style == "outlined":
        width_px = max(LEAST_OUTLINE_PX, OUTLINE_WIDTH * radius_px)
        cover = cover - np.clip(0.5 - gap_px - width_px, 0, 1)
    return cover


def _tones(thing: Thing, down: Picture, radius_px: float) -> Picture:
    """The object's colour, or its two tones in turn from top to bottom."""
    own = as_pixel(thing.kind.colour)
    if thing.kind.style != "striped":
        return own
    share = np.abs((down / STRIPE_PERIOD) % 1 - 0.5) - 0.25  # positive in stripes of the colour
    mixed = np.clip(0.5 + share * STRIPE_PERIOD * radius_px, 0, 1)[..., None]
    other = second_tone(thing.kind.colour) / 127.5 - 1
    return mixed * own + (1 - mixed) * other
