"""What a picture holds, and how to draw it: one or two coloured shapes on a plain background.

A `Wish` is what a caption states; a `Scene` is one geometry that fulfils it. Drawing is by signed
distances, so edges are smooth and every picture is exactly known to the checker. Pixels are
float32 in [-1, 1], laid out (H, W, 3), as the autoencoder takes them.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.training.outlines import distance
from models.training.vocabulary import (
    COLOURS,
    PAIR_RADII,
    PLACES,
    RADII,
    RADIUS_SPREAD,
    RELATIONS,
    SHAPES,
)

Picture: TypeAlias = NDArray[np.float32]

MARGIN = 0.95
"""How far from the middle an object's edge may be, as a fraction of half a side."""
HELD_OUT_TRIPLES_PERCENT = 10
SIZE_SHARES = (0.5, 0.3, 0.2)
"""Small objects are the hardest, so they come most often."""
UNSAID_SIZES = 0.2


@dataclass(frozen=True, slots=True)
class Kind:
    """A colour and a shape: what binds in a caption, and what is held out."""

    colour: str
    shape: str


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caption asks for; `None` where it says nothing.

    Attributes:
        kinds: One or two objects, in the order in which they are named.
        background: Colour of the background.
        size: Key of `RADII`, for a single object; a size left open is drawn medium.
        place: Key of `PLACES`, for a single object.
        relation: Key of `RELATIONS`, of the first object to the second.
    """

    kinds: tuple[Kind, ...]
    background: str
    size: str | None = None
    place: str | None = None
    relation: str | None = None


@dataclass(frozen=True, slots=True)
class Thing:
    """An object with its geometry, in units of half the shorter side, from the middle."""

    kind: Kind
    radius: float
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture before it is drawn."""

    things: tuple[Thing, ...]
    background: str
    width_px: int = 64
    height_px: int = 64


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of the training data; they grow along the curriculum.

    Attributes:
        jitter: How much of the free room a single object may wander, 0 to 1.
        placed: Share of single objects whose place is stated.
        pairs: Share of pictures with two objects.
    """

    jitter: float = 0.6
    placed: float = 0.25
    pairs: float = 0.35


def is_held_out(wish: Wish) -> bool:
    """Whether any object of the wish is a colour-shape pair or a triple never trained."""
    return any(is_pair_held_out(k) or is_triple_held_out(k, wish.background) for k in wish.kinds)


def is_pair_held_out(kind: Kind) -> bool:
    """One shape per colour is never drawn in that colour; all ten shapes occur among them."""
    return SHAPES.index(kind.shape) == (7 * list(COLOURS).index(kind.colour) + 3) % len(SHAPES)


def is_triple_held_out(kind: Kind, background: str) -> bool:
    """About a tenth of (colour, shape, background) is never drawn, by a fixed hash."""
    name = f"{kind.colour}|{kind.shape}|{background}"
    return zlib.crc32(name.encode()) % 100 < HELD_OUT_TRIPLES_PERCENT


def sample_wish(rng: np.random.Generator, mix: Mix) -> Wish:
    """A wish from the training distribution: never a held-out one."""
    while True:
        wish = any_wish(rng, mix)
        if not is_held_out(wish):
            return wish


def any_wish(rng: np.random.Generator, mix: Mix) -> Wish:
    """A wish drawn without regard to what is held out; all its colours differ."""
    colours = rng.permutation(list(COLOURS))[:3].tolist()
    shapes = rng.choice(SHAPES, size=2).tolist()
    first = Kind(colours[0], shapes[0])
    if rng.random() < mix.pairs:
        kinds = (first, Kind(colours[1], shapes[1]))
        return Wish(kinds, colours[2], relation=_relation(rng))
    size = None if rng.random() < UNSAID_SIZES else str(rng.choice(list(RADII), p=SIZE_SHARES))
    place = _place(rng) if size != "large" and rng.random() < mix.placed else None
    return Wish((first,), colours[2], size=size, place=place)


def _relation(rng: np.random.Generator) -> str | None:
    """One pair in six is only said to be there together."""
    return None if rng.random() < 1 / 6 else str(rng.choice(list(RELATIONS)))


def _place(rng: np.random.Generator) -> str:
    return str(rng.choice(list(PLACES)))


def lay_out(
    wish: Wish, rng: np.random.Generator, size_px: tuple[int, int] = (64, 64), jitter: float = 0.6
) -> Scene:
    """One scene, among many, that fulfils the wish on a canvas of (width, height) pixels."""
    shorter = min(size_px)
    room = (size_px[0] / shorter * MARGIN, size_px[1] / shorter * MARGIN)
    if len(wish.kinds) == 1:
        things = (_lay_out_single(wish, rng, room, jitter),)
    else:
        things = _lay_out_pair(wish, rng, room)
    return Scene(things, wish.background, *size_px)


def _lay_out_single(
    wish: Wish, rng: np.random.Generator, room: tuple[float, float], jitter: float
) -> Thing:
    radius = RADII[wish.size or "medium"] * rng.uniform(1 - RADIUS_SPREAD, 1 + RADIUS_SPREAD)
    free = (room[0] - radius, room[1] - radius)
    if wish.place is None:
        shares = rng.uniform(-jitter, jitter, size=2)
    else:
        shares = np.array(PLACES[wish.place]) * rng.uniform(0.65, 1, 2) + rng.uniform(-0.1, 0.1, 2)
    shares = np.clip(shares, -1, 1)
    return Thing(wish.kinds[0], radius, float(shares[0] * free[0]), float(shares[1] * free[1]))


def _lay_out_pair(
    wish: Wish, rng: np.random.Generator, room: tuple[float, float]
) -> tuple[Thing, Thing]:
    """Both objects share one line through the picture, a gap between them, some wobble across."""
    relation = wish.relation or str(rng.choice(list(RELATIONS)))
    along = 0 if RELATIONS[relation][0] else 1
    radii = rng.uniform(*PAIR_RADII, size=2)
    slack = 2 * room[along] - 2 * radii.sum()
    gap, start = rng.dirichlet((2, 1, 1))[:2] * slack
    gap = max(gap, 0.08)
    start = min(start, slack - gap)
    near = -room[along] + start + radii[0]
    centres = [near, near + radii.sum() + gap]
    if sum(RELATIONS[relation]) > 0:
        centres = [-centre for centre in centres]
    things = []
    for kind, radius, centre in zip(wish.kinds, radii, centres, strict=True):
        across = rng.uniform(-0.35, 0.35) * (room[1 - along] - radius)
        x, y = (centre, across) if along == 0 else (across, centre)
        things.append(Thing(kind, float(radius), float(x), float(y)))
    return things[0], things[1]


def draw(scene: Scene) -> Picture:
    """The scene as pixels in [-1, 1], edges smoothed over one pixel."""
    half_px = min(scene.width_px, scene.height_px) / 2
    x = (np.arange(scene.width_px, dtype=np.float32) + 0.5 - scene.width_px / 2) / half_px
    y = (np.arange(scene.height_px, dtype=np.float32) + 0.5 - scene.height_px / 2) / half_px
    picture = np.empty((scene.height_px, scene.width_px, 3), np.float32)
    picture[:] = as_pixel(scene.background)
    for thing in scene.things:
        _paint(picture, thing, x, y, half_px)
    return picture


def _paint(picture: Picture, thing: Thing, x: Picture, y: Picture, half_px: float) -> None:
    """Blend one object into the part of the picture that it covers."""
    reach = thing.radius + 1.5 / half_px
    columns = np.flatnonzero(np.abs(x - thing.x) <= reach)
    rows = np.flatnonzero(np.abs(y - thing.y) <= reach)
    across = (x[columns][None, :] - np.float32(thing.x)) / np.float32(thing.radius)
    down = (y[rows][:, None] - np.float32(thing.y)) / np.float32(thing.radius)
    gap_px = distance(thing.kind.shape, across, down) * (thing.radius * half_px)
    cover = np.clip(0.5 - gap_px, 0, 1)[..., None]
    window = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    window += cover * (as_pixel(thing.kind.colour) - window)


def as_pixel(colour: str) -> Picture:
    """A palette colour in [-1, 1]."""
    return np.asarray(COLOURS[colour], np.float32) / 127.5 - 1
