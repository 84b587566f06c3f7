"""Clips as data: how one coloured shape moves, and the scenes of its frames.

A clip is a straight course of constant speed: the object crosses the middle of the picture, or
keeps its place and changes its size, or stays as it is. Where it starts, how far it goes and how
large it is are drawn at random, so the frames of a clip have to agree with each other.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from models.training.scenes import (
    MARGIN,
    Kind,
    Scene,
    Thing,
    Wish,
    any_wish,
    is_held_out,
)
from models.training.scenes import Mix as StillMix
from models.training.vocabulary import RADII, RADIUS_SPREAD

if TYPE_CHECKING:
    from collections.abc import Callable

FRAMES = 9
SIDE_PX = 64
HELD_OUT_MOVEMENTS_PERCENT = 10
STILL = "still"
STILL_SHARE = 0.08
"""How often a wish names no movement: its object stays where it is. In training it is about twice
as often, because movements of the wrong turn are drawn again."""
SHORTEST_WAY = 0.55
"""Share of the free room that the course uses at least, on either side of the middle."""
WANDER = 0.5
"""Share of the free room in which the course lies, across its direction."""
SMALL_RADII, LARGE_RADII = (0.32, 0.42), (0.66, 0.8)
"""Where growing begins and where it ends; shrinking is the reverse."""
_NOT_PLACED = StillMix(placed=0.0, pairs=0.0)


class Heading(NamedTuple):
    """Signs of the change along x (to the right), y (downwards) and the radius."""

    x: int = 0
    y: int = 0
    radius: int = 0


HEADINGS: Mapping[str, Heading] = MappingProxyType(
    {
        "left": Heading(x=-1),
        "right": Heading(x=1),
        "up": Heading(y=-1),
        "down": Heading(y=1),
        "growing": Heading(radius=1),
        "shrinking": Heading(radius=-1),
        STILL: Heading(),
    }
)
MOVING: tuple[str, ...] = tuple(name for name in HEADINGS if name != STILL)
MOVING_SHARES: tuple[float, ...] = (0.14, 0.14, 0.14, 0.14, 0.17, 0.27)
"""How often each is trained, before turns are balanced. Shrinking is learned last: at even shares
it was still half-hearted after 3,400 clips, when the directions were right."""


@dataclass(frozen=True, slots=True)
class ClipWish:
    """What a caption asks for: what is to be seen, and how it moves (a key of `HEADINGS`)."""

    look: Wish
    movement: str

    @property
    def kind(self) -> Kind:
        """Colour and shape of the one object."""
        return self.look.kinds[0]


class Pose(NamedTuple):
    """Where the object is, in units of half the shorter side from the middle, and how large."""

    x: float
    y: float
    radius: float


def is_clip_held_out(wish: ClipWish) -> bool:
    """Whether its looks, or its kind with its movement, are never trained."""
    return is_held_out(wish.look) or is_movement_held_out(wish)


def is_movement_held_out(wish: ClipWish) -> bool:
    """About a tenth of (colour, shape, movement) is never drawn, by a fixed hash."""
    name = f"{wish.kind.colour}|{wish.kind.shape}|{wish.movement}"
    return wish.movement != STILL and zlib.crc32(name.encode()) % 100 < HELD_OUT_MOVEMENTS_PERCENT


def sample_clip_wish(rng: np.random.Generator, turned: float = 0.5) -> ClipWish:
    """A wish from the training distribution: never a held-out one.

    `turned` is the share of movements that are the reverse of another: left, up and shrinking.
    """
    is_turned = rng.random() < turned
    return _draw_until(
        rng,
        lambda wish: (
            not is_clip_held_out(wish)
            and (wish.movement == STILL or (sum(HEADINGS[wish.movement]) < 0) == is_turned)
        ),
        STILL_SHARE,
        MOVING_SHARES,
    )


def held_out_clip_wish(
    rng: np.random.Generator, accepts: Callable[[ClipWish], bool] = is_clip_held_out
) -> ClipWish:
    """A moving wish that was never trained, of the sort that `accepts` wants."""
    return _draw_until(rng, lambda wish: is_clip_held_out(wish) and accepts(wish), 0.0)


def _draw_until(
    rng: np.random.Generator,
    accepts: Callable[[ClipWish], bool],
    still: float,
    shares: tuple[float, ...] | None = None,
) -> ClipWish:
    while True:
        wish = _any_clip_wish(rng, still, shares)
        if accepts(wish):
            return wish


def _any_clip_wish(
    rng: np.random.Generator, still: float, shares: tuple[float, ...] | None
) -> ClipWish:
    """Large objects have no room to move, and those that change size have no one size."""
    look = any_wish(rng, _NOT_PLACED)
    if rng.random() < still:
        return ClipWish(look, STILL)
    movement = str(rng.choice(MOVING, p=shares))
    size = None if HEADINGS[movement].radius or look.size == "large" else look.size
    return ClipWish(Wish(look.kinds, look.background, size=size), movement)


def lay_out_clip(wish: ClipWish, rng: np.random.Generator, frames: int = FRAMES) -> list[Scene]:
    """The frames of one clip, among many, that fulfils the wish."""
    start, end = _course(wish, rng)
    scenes = []
    for share in np.linspace(0, 1, frames):
        pose = [float(a + share * (b - a)) for a, b in zip(start, end, strict=True)]
        thing = Thing(wish.kind, radius=pose[2], x=pose[0], y=pose[1])
        scenes.append(Scene((thing,), wish.look.background, SIDE_PX, SIDE_PX))
    return scenes


def _course(wish: ClipWish, rng: np.random.Generator) -> tuple[Pose, Pose]:
    heading = HEADINGS[wish.movement]
    if heading.radius:
        return _course_in_place(heading, rng)
    spread = rng.uniform(1 - RADIUS_SPREAD, 1 + RADIUS_SPREAD)
    radius = RADII[wish.look.size or "medium"] * spread
    room = MARGIN - radius
    behind, ahead = rng.uniform(SHORTEST_WAY, 1, size=2) * room
    aside = rng.uniform(-WANDER, WANDER, size=2) * room
    across = [0.0 if sign else float(a) for sign, a in zip(heading[:2], aside, strict=True)]
    start = Pose(across[0] - heading.x * behind, across[1] - heading.y * behind, radius)
    return start, Pose(across[0] + heading.x * ahead, across[1] + heading.y * ahead, radius)


def _course_in_place(heading: Heading, rng: np.random.Generator) -> tuple[Pose, Pose]:
    small, large = rng.uniform(*SMALL_RADII), rng.uniform(*LARGE_RADII)
    x, y = rng.uniform(-WANDER, WANDER, size=2) * (MARGIN - large)
    poses = Pose(x, y, small), Pose(x, y, large)
    return poses if heading.radius > 0 else poses[::-1]
