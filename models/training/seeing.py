"""See what is in a picture: its background and the objects on it, without knowing the caption.

An object is a connected region that differs from the background; each of its pixels is nearer to
the region's own median colour than to the background's, so soft edges do not matter. Whatever is
not flat (noise), not near a palette colour (mud) or not like any outline (blobs) gets no name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.training.outlines import distance, moments
from models.training.vocabulary import COLOURS, SHAPES

Pixels: TypeAlias = NDArray[np.uint8]  # (H, W, 3)
Mask: TypeAlias = NDArray[np.bool_]  # (H, W)
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


@dataclass(frozen=True, slots=True)
class SeenThing:
    """An object as found; `None` where it has no name in the vocabulary.

    Attributes:
        x: Middle of its box in units of half the shorter side, from the picture's middle.
        y: As x, downwards.
        radius: Half the longer side of its box, same unit.
    """

    colour: str | None
    shape: str | None
    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class Seen:
    """A picture as the checker understands it; larger objects come first."""

    background: str | None
    things: tuple[SeenThing, ...]


def see(picture: Pixels) -> Seen:
    """Find background and objects in a uint8 RGB picture."""
    pixels = picture.astype(np.float32)
    ground, framed_share = _frame(pixels)
    differs = _inner(np.linalg.norm(pixels - ground, axis=-1) > LEAST_CONTRAST)
    regions = [r for r in _regions(differs) if r.sum() >= LEAST_AREA_SHARE * differs.size]
    regions.sort(key=lambda region: -int(region.sum()))
    rest = _inner(np.ones_like(differs)) & ~_grow(differs)
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


def overlap(mask: Mask, shape: str) -> float:
    """Intersection over union of a mask and an outline of the same area and centroid."""
    area, centre_x, centre_y = moments(shape)
    scale = (mask.sum() / area) ** 0.5
    x = np.arange(mask.shape[1], dtype=np.float32) + 0.5
    y = np.arange(mask.shape[0], dtype=np.float32) + 0.5
    across = (x - (mask.sum(axis=0) @ x) / mask.sum()) / scale + centre_x
    down = (y - (mask.sum(axis=1) @ y) / mask.sum()) / scale + centre_y
    template = distance(shape, across[None, :], down[:, None]) < 0
    return float((mask & template).sum() / (mask | template).sum())


def _thing(pixels: Floats, region: Mask, ground: Floats) -> SeenThing:
    colour = np.median(pixels[region], axis=0)
    to_own = np.linalg.norm(pixels - colour, axis=-1)
    to_ground = np.linalg.norm(pixels - ground, axis=-1)
    mask = region & (to_own < to_ground)
    half = min(mask.shape) / 2
    flat = _is_blend(pixels[mask], colour, ground)
    left, right, top, bottom = _box(mask)
    return SeenThing(
        colour_name(colour) if flat else None,
        shape_name(mask) if flat else None,
        (left + right - mask.shape[1]) / 2 / half,
        (top + bottom - mask.shape[0]) / 2 / half,
        max(right - left, bottom - top) / 2 / half,
    )


def _frame(pixels: Floats) -> tuple[Floats, float]:
    """The median colour of the picture's border, and the share of the border that is near it."""
    frame = np.ones(pixels.shape[:2], bool)
    frame[FRAME_PX:-FRAME_PX, FRAME_PX:-FRAME_PX] = False
    middle = np.median(pixels[frame], axis=0)
    near = np.linalg.norm(pixels[frame] - middle, axis=-1) < LEAST_CONTRAST
    return middle, float(near.mean())


def _is_blend(colours: Floats, own: Floats, ground: Floats) -> bool:
    """Whether nearly all pixels, (N, 3), are mixtures of two colours, as smooth edges are."""
    way = own - ground
    share = np.clip((colours - ground) @ way / max(float(way @ way), 1), 0, 1)
    error = np.linalg.norm(ground + share[:, None] * way - colours, axis=-1)
    return bool((error < LARGEST_FLAT_ERROR).mean() >= LEAST_FLAT_SHARE)


def _inner(mask: Mask) -> Mask:
    out = np.zeros_like(mask)
    out[EDGE_PX:-EDGE_PX, EDGE_PX:-EDGE_PX] = mask[EDGE_PX:-EDGE_PX, EDGE_PX:-EDGE_PX]
    return out


def _grow(mask: Mask) -> Mask:
    """The mask and its four-neighbours."""
    out = mask.copy()
    out[1:] |= mask[:-1]
    out[:-1] |= mask[1:]
    out[:, 1:] |= mask[:, :-1]
    out[:, :-1] |= mask[:, 1:]
    return out


def _regions(mask: Mask) -> list[Mask]:
    """Four-connected regions: the largest label of each spreads until nothing changes."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        spread = labels.copy()
        spread[1:] = np.maximum(spread[1:], labels[:-1])
        spread[:-1] = np.maximum(spread[:-1], labels[1:])
        spread[:, 1:] = np.maximum(spread[:, 1:], labels[:, :-1])
        spread[:, :-1] = np.maximum(spread[:, :-1], labels[:, 1:])
        spread[~mask] = 0
        if (spread == labels).all():
            return [labels == label for label in np.unique(labels) if label]
        labels = spread


def _box(mask: Mask) -> tuple[int, int, int, int]:
    """Left, right, top and bottom of a mask, in pixels; right and bottom are exclusive."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(columns[-1]) + 1, int(rows[0]), int(rows[-1]) + 1
