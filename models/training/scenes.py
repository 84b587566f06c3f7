"""What a picture holds: one or two coloured shapes on a plain background.

A `Wish` is what a caption states; a `Scene` is one geometry that fulfils it, so every picture is
exactly known to the checker. `painting` turns a scene into pixels.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np

from models.training.painting import second_tone
from models.training.vocabulary import (
    COLOURS,
    FIRST_SHAPES,
    HOLLOW_SHAPES,
    LATER_SHAPES,
    PAIR_RADII,
    PLACES,
    PLAIN,
    RADII,
    RADIUS_SPREAD,
    RELATIONS,
    SHAPES,
    STYLES,
)

MARGIN = 0.95
"""How far from the middle an object's edge may be, as a fraction of half a side."""
HELD_OUT_TRIPLES_PERCENT = 10
LEAST_GAP = 0.16
"""Between two objects, in units of half the shorter side: 5 pixels of 64."""
LEAST_TONE_CONTRAST = 90.0
"""RGB distance from the background that the second tone of a striped object has at least."""
SIZE_SHARES = (0.5, 0.3, 0.2)
"""Small objects are the hardest, so they come most often."""
UNSAID_SIZES = 0.2


@dataclass(frozen=True, slots=True)
class Kind:
    """A colour, a shape and a style: what binds in a caption, and what is held out."""

    colour: str
    shape: str
    style: str = PLAIN


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
    """An object with its geometry, in units of half the shorter side, from the middle.

    `angle` is how far it is turned clockwise, in radians.
    """

    kind: Kind
    radius: float
    x: float
    y: float
    angle: float = 0.0


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
        styled: Share of single, not small objects that are outlined or striped.
        later: How often each of the later shapes comes, one of the first ten coming once.
    """

    jitter: float = 0.6
    placed: float = 0.25
    pairs: float = 0.35
    styled: float = 0.0
    later: float = 1.0


def is_held_out(wish: Wish) -> bool:
    """Whether any object of the wish is a combination never trained."""
    return any(
        is_pair_held_out(kind)
        or is_triple_held_out(kind, wish.background)
        or is_style_held_out(kind)
        for kind in wish.kinds
    )


def is_pair_held_out(kind: Kind) -> bool:
    """Some shapes are never drawn in some colours; every shape is among them.

    One of the first ten shapes in each colour, and each of the later ones in two colours.
    """
    shape, colour = SHAPES.index(kind.shape), list(COLOURS).index(kind.colour)
    if kind.shape in FIRST_SHAPES:
        return shape == (7 * colour + 3) % len(FIRST_SHAPES)
    return colour % 6 == LATER_SHAPES.index(kind.shape)


def is_triple_held_out(kind: Kind, background: str) -> bool:
    """About a tenth of (colour, shape, background) is never drawn, by a fixed hash."""
    return _is_drawn_out(f"{kind.colour}|{kind.shape}|{background}")


def is_style_held_out(kind: Kind) -> bool:
    """About a tenth of (colour, shape, style) is never drawn, by a fixed hash."""
    return kind.style != PLAIN and _is_drawn_out(f"{kind.colour}|{kind.shape}|{kind.style}")


def _is_drawn_out(name: str) -> bool:
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
    weights = np.array([mix.later if shape in LATER_SHAPES else 1.0 for shape in SHAPES])
    shapes = rng.choice(SHAPES, size=2, p=weights / weights.sum()).tolist()
    first = Kind(colours[0], shapes[0])
    if rng.random() < mix.pairs:
        kinds = (first, Kind(colours[1], shapes[1]))
        return Wish(kinds, colours[2], relation=_relation(rng))
    size = None if rng.random() < UNSAID_SIZES else str(rng.choice(list(RADII), p=SIZE_SHARES))
    place = _place(rng) if size != "large" and rng.random() < mix.placed else None
    if size != "small" and rng.random() < mix.styled:
        first = _styled(first, colours[2], rng)
    return Wish((first,), colours[2], size=size, place=place)


def _styled(kind: Kind, background: str, rng: np.random.Generator) -> Kind:
    """The kind in another style, if that can be told from the background and from a hollow shape."""
    styles = [style for style in STYLES[1:] if _can_be_seen(kind, style, background)]
    return replace(kind, style=str(rng.choice(styles))) if styles else kind


def _can_be_seen(kind: Kind, style: str, background: str) -> bool:
    if style == "outlined":
        return kind.shape not in HOLLOW_SHAPES
    apart = second_tone(kind.colour) - np.asarray(COLOURS[background], np.float32)
    return float(np.linalg.norm(apart)) >= LEAST_TONE_CONTRAST


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
    gap, start = rng.dirichlet((2, 1, 1))[:2] * (slack - LEAST_GAP)
    gap += LEAST_GAP
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
