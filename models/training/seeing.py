"""See what is in a picture: its background and the objects on it, without knowing the caption.

An object is a connected region that differs from the background; each of its pixels is nearer to
the region's own colour than to the background's, so soft edges do not matter. Whatever is not flat
or evenly striped (noise), not near a palette colour (mud) or not like any outline (blobs) gets no
name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.training import masks
from models.training.masks import Mask
from models.training.outlines import distance, moments
from models.training.painting import second_tone, turned
from models.training.vocabulary import COLOURS, HOLLOW_SHAPES, PLAIN, SHAPES

Pixels: TypeAlias = NDArray[np.uint8]  # (H, W, 3)
Floats: TypeAlias = NDArray[np.float32]

EDGE_PX = 1
"""Objects are not looked for in this border: decoders are least exact there."""
FRAME_PX = 3
"""The background's colour is the median of a border this wide."""
LEAST_CONTRAST = 35.0
"""RGB distance from the background at which a pixel may belong to an object."""
LARGEST_COLOUR_ERROR = 60.0
LARGEST_FLAT_ERROR = 40.0
LEAST_FLAT_SHARE = 0.9
LEAST_AREA_SHARE = 0.004
LEAST_OVERLAP = 0.8
"""Intersection over union with the best outline below which a shape has no name."""
LEAST_HOLE = 0.08
"""Share of a filled object that is empty from which on it is outlined, if it is not a ring."""
LEAST_TONES_APART = 70.0
LEAST_TONE_SHARE = 0.2
LEAST_STRIPES = 4
LEAST_STRIPED_ROWS = 0.6
"""Share of an object's rows that show one tone only."""


@dataclass(frozen=True, slots=True)
class SeenThing:
    """An object as found; `None` where it has no name in the vocabulary.

    Attributes:
        x: Middle of its box in units of half the shorter side, from the picture's middle.
        y: As x, downwards.
        radius: Half the longer side of its box, same unit.
        mask: Its pixels, with what lies within an outline.
    """

    colour: str | None
    shape: str | None
    style: str | None
    x: float
    y: float
    radius: float
    mask: Mask


@dataclass(frozen=True, slots=True)
class Seen:
    """A picture as the checker understands it; larger objects come first."""

    background: str | None
    things: tuple[SeenThing, ...]


@dataclass(frozen=True, slots=True)
class _Paint:
    """How an object is painted, and the pixels that are."""

    colour: str | None
    style: str | None
    mask: Mask


def see(picture: Pixels) -> Seen:
    """Find background and objects in a uint8 RGB picture."""
    pixels = picture.astype(np.float32)
    ground, framed_share = _frame(pixels)
    differs = np.linalg.norm(pixels - ground, axis=-1) > LEAST_CONTRAST
    differs = masks.inner(differs, EDGE_PX)
    regions = masks.regions(differs, LEAST_AREA_SHARE * differs.size)
    rest = masks.inner(np.ones_like(differs), EDGE_PX) & ~masks.grow(differs)
    flat = framed_share >= 0.5 and rest.any() and _is_blend(pixels[rest], ground, ground)
    background = colour_name(ground) if flat else None
    return Seen(background, tuple(_thing(pixels, region, ground) for region in regions))


def colour_name(rgb: Floats) -> str | None:
    """The nearest palette colour, if it is near enough."""
    names = list(COLOURS)
    distances = np.linalg.norm(np.array([COLOURS[name] for name in names]) - rgb, axis=1)
    best = int(distances.argmin())
    return names[best] if distances[best] <= LARGEST_COLOUR_ERROR else None


def shape_name(mask: Mask) -> str | None:
    """The outline that overlaps best when laid over the mask's box, if it overlaps enough."""
    overlaps = {shape: overlap(mask, shape) for shape in SHAPES}
    best = max(overlaps, key=overlaps.__getitem__)
    return best if overlaps[best] >= LEAST_OVERLAP else None


def overlap(mask: Mask, shape: str, angle: float = 0.0) -> float:
    """Intersection over union of a mask and an outline of the same area and centroid.

    The outline is turned clockwise by `angle` radians first.
    """
    area, centre_x, centre_y = moments(shape)
    scale = (mask.sum() / area) ** 0.5
    x = np.arange(mask.shape[1], dtype=np.float32) + 0.5
    y = np.arange(mask.shape[0], dtype=np.float32) + 0.5
    across = ((x - (mask.sum(axis=0) @ x) / mask.sum()) / scale)[None, :]
    down = ((y - (mask.sum(axis=1) @ y) / mask.sum()) / scale)[:, None]
    if angle:
        across, down = turned(across, down, angle)
    template = distance(shape, across + centre_x, down + centre_y) < 0
    return float((mask & template).sum() / (mask | template).sum())


def _thing(pixels: Floats, region: Mask, ground: Floats) -> SeenThing:
    paint = _striped(pixels, region, ground) or _flat(pixels, region, ground)
    whole = masks.filled(paint.mask)
    shape = shape_name(paint.mask) if paint.style else None
    has_hole = paint.mask.sum() <= (1 - LEAST_HOLE) * whole.sum()
    if paint.style == PLAIN and has_hole and shape not in HOLLOW_SHAPES:
        paint, shape = _Paint(paint.colour, "outlined", whole), shape_name(whole)
    half = min(whole.shape) / 2
    left, right, top, bottom = masks.box(paint.mask)
    return SeenThing(
        paint.colour,
        shape,
        paint.style,
        (left + right - whole.shape[1]) / 2 / half,
        (top + bottom - whole.shape[0]) / 2 / half,
        max(right - left, bottom - top) / 2 / half,
        paint.mask,
    )


def _flat(pixels: Floats, region: Mask, ground: Floats) -> _Paint:
    """One colour throughout; no style and no colour if it is not flat.

    The colour is that of the pixels farthest from the background: of a thin band, most are edges.
    """
    contrast = np.linalg.norm(pixels - ground, axis=-1)
    colour = np.median(pixels[region & (contrast >= np.median(contrast[region]))], axis=0)
    mask = region & (np.linalg.norm(pixels - colour, axis=-1) < contrast)
    flat = _is_blend(pixels[mask], colour, ground)
    return _Paint(colour_name(colour) if flat else None, PLAIN if flat else None, mask)


def _striped(pixels: Floats, region: Mask, ground: Floats) -> _Paint | None:
    """Two tones in turn from top to bottom; nothing if there are not two, or not in stripes."""
    tones = _two_tones(pixels[masks.shrink(region)])
    if tones is None:
        return None
    first, second = (np.linalg.norm(pixels - tone, axis=-1) for tone in tones)
    contrast = np.linalg.norm(pixels - ground, axis=-1)
    mask = region & (np.minimum(first, second) < contrast)
    if not _in_stripes(first < second, mask):
        return None
    flat = _is_blend(pixels[masks.shrink(mask)], *tones)
    return _Paint(_tones_name(tones), "striped", mask) if flat else None


def _two_tones(colours: Floats) -> tuple[Floats, Floats] | None:
    """The two colours that pixels, (N, 3), gather around; nothing if they gather around one."""
    if len(colours) < 8:
        return None
    centred = colours - colours.mean(axis=0)
    along = centred @ np.linalg.eigh(centred.T @ centred)[1][:, -1]
    low, high = np.percentile(along, (10, 90))
    upper = along > (low + high) / 2
    if min(upper.mean(), 1 - upper.mean()) < LEAST_TONE_SHARE:
        return None
    tones = np.median(colours[upper], axis=0), np.median(colours[~upper], axis=0)
    return tones if np.linalg.norm(tones[0] - tones[1]) >= LEAST_TONES_APART else None


def _in_stripes(is_first: Mask, mask: Mask) -> bool:
    """Whether rows show one tone each, and the tone changes often enough from row to row."""
    counts = mask.sum(axis=1)
    rows = counts > 0
    shares = (is_first & mask).sum(axis=1)[rows] / counts[rows]
    sure = shares[np.abs(shares - 0.5) > 0.3]
    stripes = 1 + np.count_nonzero(np.diff(sure > 0.5)) if len(sure) else 0
    return bool(len(sure) >= LEAST_STRIPED_ROWS * rows.sum() and stripes >= LEAST_STRIPES)


def _tones_name(tones: tuple[Floats, Floats]) -> str | None:
    """The palette colour that goes with both tones, if both are near enough."""
    errors = {
        name: min(
            max(np.linalg.norm(one - COLOURS[name]), np.linalg.norm(two - second_tone(name)))
            for one, two in (tones, tones[::-1])
        )
        for name in COLOURS
    }
    best = min(errors, key=errors.__getitem__)
    return best if errors[best] <= LARGEST_COLOUR_ERROR else None


def _frame(pixels: Floats) -> tuple[Floats, float]:
    """The median colour of the picture's border, and the share of the border that is near it."""
    frame = np.ones(pixels.shape[:2], bool)
    frame[FRAME_PX:-FRAME_PX, FRAME_PX:-FRAME_PX] = False
    middle = np.median(pixels[frame], axis=0)
    near = np.linalg.norm(pixels[frame] - middle, axis=-1) < LEAST_CONTRAST
    return middle, float(near.mean())


def _is_blend(colours: Floats, own: Floats, ground: Floats) -> bool:
    """Whether nearly all pixels, (N, 3), are mixtures of two colours, as smooth edges are."""
    if not len(colours):
        return False
    way = own - ground
    share = np.clip((colours - ground) @ way / max(float(way @ way), 1), 0, 1)
    error = np.linalg.norm(ground + share[:, None] * way - colours, axis=-1)
    return bool((error < LARGEST_FLAT_ERROR).mean() >= LEAST_FLAT_SHARE)
