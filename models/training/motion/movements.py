"""Clips as data: how one coloured shape moves, and the scenes of its frames.

Most clips are a straight course of constant speed: the object crosses the middle of the picture, or
keeps its place and changes its size, or stays as it is. Others keep their place and turn evenly, or
fall, bounce and rise again. Where it starts, how far it goes and how large it is are drawn at
random, so the frames of a clip have to agree with each other.
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
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

FRAMES = 9
SIDE_PX = 64
HELD_OUT_MOVEMENTS_PERCENT = 10
STILL, BOUNCING, TURNING = "still", "bouncing", "turning"
STILL_SHARE = 0.08
"""How often a wish names no movement: its object stays where it is. In training it is about twice
as often, because movements of the wrong way are drawn again."""
SHORTEST_WAY = 0.55
"""Share of the free room that the course uses at least, on either side of the middle."""
WANDER = 0.5
"""Share of the free room in which the course lies, across its direction."""
SMALL_RADII, LARGE_RADII = (0.32, 0.42), (0.66, 0.8)
"""Where growing begins and where it ends; shrinking is the reverse."""
BOUNCE_FRAMES = 8
"""From one highest point to the next, whatever the length of the clip."""
TURN_DEGREES = 22.5
"""From frame to frame, clockwise, whatever the length of the clip; the object starts upright."""
CORNERS = 1.3
"""How much farther than its radius a turning object may reach."""
ROUND_SHAPES = ("circle", "ring")
"""Nobody can see these turn."""
_NOT_PLACED = StillMix(placed=0.0, pairs=0.0, later=0.0)


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
        BOUNCING: Heading(),
        TURNING: Heading(),
        STILL: Heading(),
    }
)
MOVING: tuple[str, ...] = tuple(name for name in HEADINGS if any(HEADINGS[name]))
EVERY_MOVING: tuple[str, ...] = (*MOVING, BOUNCING, TURNING)
"""Everything that is drawn and judged. Bouncing is trained in the second part only, turning not at
all: the stills know every shape upright only."""
MOVING_SHARES: Mapping[str, float] = MappingProxyType(
    dict(zip(MOVING, (0.14, 0.14, 0.14, 0.14, 0.17, 0.27), strict=True))
)
"""How often each is trained, before ways are balanced. Shrinking is learned last: at even shares
it was still half-hearted after 3,400 clips, when the directions were right."""
ALL_SHARES: Mapping[str, float] = MappingProxyType(
    {name: 0.84 * share for name, share in MOVING_SHARES.items()} | {BOUNCING: 0.16}
)
"""The same for the second part. Since movements of the wrong way are drawn again, a quarter of what
is trained bounces."""


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
    """Where the object is, how large, and how far it is turned clockwise, in radians.

    Lengths are in units of half the shorter side, from the middle.
    """

    x: float
    y: float
    radius: float
    angle: float = 0.0


def is_clip_held_out(wish: ClipWish) -> bool:
    """Whether its looks, or its kind with its movement, are never trained."""
    return is_held_out(wish.look) or is_movement_held_out(wish)


def is_movement_held_out(wish: ClipWish) -> bool:
    """About a tenth of (colour, shape, movement) is never drawn, by a fixed hash."""
    name = f"{wish.kind.colour}|{wish.kind.shape}|{wish.movement}"
    return wish.movement != STILL and zlib.crc32(name.encode()) % 100 < HELD_OUT_MOVEMENTS_PERCENT


def is_visible(wish: ClipWish) -> bool:
    """Whether the movement can be seen at all: round shapes turn in vain."""
    return wish.movement != TURNING or wish.kind.shape not in ROUND_SHAPES


def is_straight(movement: str) -> bool:
    """Whether place and size change evenly, or not at all."""
    return movement not in (BOUNCING, TURNING)


def sample_clip_wish(
    rng: np.random.Generator, back: float = 0.5, *, straight: bool = False
) -> ClipWish:
    """A wish from the training distribution: never a held-out one.

    `back` is the share of movements that are the reverse of another: left, up and shrinking.
    """
    is_back = rng.random() < back
    return _draw_until(
        rng,
        lambda wish: (
            not is_clip_held_out(wish)
            and (not any(HEADINGS[wish.movement]) or (sum(HEADINGS[wish.movement]) < 0) == is_back)
        ),
        STILL_SHARE,
        MOVING_SHARES if straight else ALL_SHARES,
    )


def held_out_clip_wish(
    rng: np.random.Generator,
    accepts: Callable[[ClipWish], bool] = is_clip_held_out,
    movements: Sequence[str] = MOVING,
) -> ClipWish:
    """A moving wish that was never trained, of the sort that `accepts` wants."""
    even = dict.fromkeys(movements, 1 / len(movements))
    return _draw_until(rng, lambda wish: is_clip_held_out(wish) and accepts(wish), 0.0, even)


def _draw_until(
    rng: np.random.Generator,
    accepts: Callable[[ClipWish], bool],
    still: float,
    shares: Mapping[str, float],
) -> ClipWish:
    while True:
        wish = _any_clip_wish(rng, still, shares)
        if is_visible(wish) and accepts(wish):
            return wish


def _any_clip_wish(rng: np.random.Generator, still: float, shares: Mapping[str, float]) -> ClipWish:
    """Large objects have no room to move, and those that change size have no one size."""
    look = any_wish(rng, _NOT_PLACED)
    if rng.random() < still:
        return ClipWish(look, STILL)
    movement = str(rng.choice(list(shares), p=list(shares.values())))
    size = None if HEADINGS[movement].radius or look.size == "large" else look.size
    return ClipWish(Wish(look.kinds, look.background, size=size), movement)


def lay_out_clip(
    wish: ClipWish, rng: np.random.Generator, frames: int = FRAMES, side_px: int = SIDE_PX
) -> list[Scene]:
    """The frames of one clip, among many, that fulfils the wish."""
    return [
        Scene(
            (Thing(wish.kind, p.radius, p.x, p.y, p.angle),), wish.look.background, side_px, side_px
        )
        for p in _poses(wish, rng, frames)
    ]


def _poses(wish: ClipWish, rng: np.random.Generator, frames: int) -> list[Pose]:
    if wish.movement == BOUNCING:
        return _bouncing(_radius(wish, rng), rng, frames)
    if wish.movement == TURNING:
        return _turning(_radius(wish, rng), rng, frames)
    heading = HEADINGS[wish.movement]
    start, end = _in_place(heading, rng) if heading.radius else _crossing(wish, heading, rng)
    shares = np.linspace(0, 1, frames)
    return [
        Pose(*(float(a + share * (b - a)) for a, b in zip(start, end, strict=True)))
        for share in shares
    ]


def _radius(wish: ClipWish, rng: np.random.Generator) -> float:
    spread = rng.uniform(1 - RADIUS_SPREAD, 1 + RADIUS_SPREAD)
    return float(RADII[wish.look.size or "medium"] * spread)


def _crossing(wish: ClipWish, heading: Heading, rng: np.random.Generator) -> tuple[Pose, Pose]:
    radius = _radius(wish, rng)
    room = MARGIN - radius
    behind, ahead = rng.uniform(SHORTEST_WAY, 1, size=2) * room
    aside = rng.uniform(-WANDER, WANDER, size=2) * room
    across = [0.0 if sign else float(a) for sign, a in zip(heading[:2], aside, strict=True)]
    start = Pose(across[0] - heading.x * behind, across[1] - heading.y * behind, radius)
    return start, Pose(across[0] + heading.x * ahead, across[1] + heading.y * ahead, radius)


def _in_place(heading: Heading, rng: np.random.Generator) -> tuple[Pose, Pose]:
    small, large = rng.uniform(*SMALL_RADII), rng.uniform(*LARGE_RADII)
    x, y = rng.uniform(-WANDER, WANDER, size=2) * (MARGIN - large)
    poses = Pose(x, y, small), Pose(x, y, large)
    return poses if heading.radius > 0 else poses[::-1]


def _bouncing(radius: float, rng: np.random.Generator, frames: int) -> list[Pose]:
    room = MARGIN - radius
    top, bottom = rng.uniform(SHORTEST_WAY, 1, size=2) * room
    x = float(rng.uniform(-WANDER, WANDER) * room)
    heights = bounce_heights(np.arange(frames))
    return [Pose(x, float(bottom - h * (bottom + top)), radius) for h in heights]


def bounce_heights(frames: NDArray[np.int_]) -> NDArray[np.float64]:
    """Height at each frame, as a share of the highest; it falls freely from frame 0 on."""
    half = BOUNCE_FRAMES // 2
    since_top = np.abs((frames + half) % BOUNCE_FRAMES - half) / half
    return 1.0 - since_top**2


def _turning(radius: float, rng: np.random.Generator, frames: int) -> list[Pose]:
    x, y = rng.uniform(-WANDER, WANDER, size=2) * (MARGIN - CORNERS * radius)
    angles = np.radians(TURN_DEGREES) * np.arange(frames)
    return [Pose(float(x), float(y), radius, float(angle)) for angle in angles]
