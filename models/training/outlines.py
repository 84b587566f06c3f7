"""Signed distances to the outlines of the dozen shapes, in a frame where each fills its own box.

Every outline is centred on the middle of its bounding box, and the longer side of that box reaches
from -1 to 1. The drawing code and the checker share this frame: the box of what was found in a
picture says how to lay each candidate over it. Distances are exact near the outline only, which
is all that edge smoothing needs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Field: TypeAlias = NDArray[np.float32]
Outline: TypeAlias = Callable[[Field, Field], Field]


class Moments(NamedTuple):
    """Area and centroid of an outline in the common frame."""

    area: float
    x: float
    y: float


class Box(NamedTuple):
    """Bounding box of a raw outline: its middle and half of its width and height."""

    centre_x: float
    centre_y: float
    half_width: float
    half_height: float


def _circle(x: Field, y: Field) -> Field:
    return np.hypot(x, y) - 1


def _box(x: Field, y: Field, half_width: float, half_height: float) -> Field:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _square(x: Field, y: Field) -> Field:
    return _box(x, y, 0.9, 0.9)


def _triangle(x: Field, y: Field) -> Field:
    # Apex up: two slanted sides and a base below the middle.
    slanted = np.abs(x) * math.cos(math.pi / 6) - y * 0.5
    return np.maximum(slanted, y) - 0.5


def _diamond(x: Field, y: Field) -> Field:
    width, height = 0.72, 1.0
    return (np.abs(x) * height + np.abs(y) * width - width * height) / math.hypot(width, height)


def _star(x: Field, y: Field) -> Field:
    # Fold the plane into one of ten wedges; one straight edge is left.
    wedge = 2 * math.pi / 5
    angle = np.abs((np.arctan2(x, -y) + wedge / 2) % wedge - wedge / 2)
    radius = np.hypot(x, y)
    inner_x, inner_y = 0.45 * math.cos(wedge / 2), 0.45 * math.sin(wedge / 2)
    length = math.hypot(1 - inner_x, inner_y)
    along, across = radius * np.cos(angle), radius * np.sin(angle)
    return ((along - 1) * inner_y + across * (1 - inner_x)) / length


def _heart(x: Field, y: Field) -> Field:
    # The usual closed form: a quarter disc on each lobe, straight flanks to the tip.
    across, up = np.abs(x), 0.55 - y
    to_lobe = np.hypot(across - 0.25, up - 0.75) - math.sqrt(2) / 4
    to_notch = np.hypot(across, up - 1)
    shift = 0.5 * np.maximum(across + up, 0)
    to_flank = np.hypot(across - shift, up - shift)
    below = np.minimum(to_notch, to_flank) * np.sign(across - up)
    return np.where(across + up > 1, to_lobe, below)


def _cross(x: Field, y: Field) -> Field:
    return np.minimum(_box(x, y, 1, 0.32), _box(x, y, 0.32, 1))


def _ring(x: Field, y: Field) -> Field:
    return np.abs(np.hypot(x, y) - 0.75) - 0.25


def _moon(x: Field, y: Field) -> Field:
    return np.maximum(np.hypot(x, y) - 1, 0.85 - np.hypot(x - 0.5, y))


def _arrow(x: Field, y: Field) -> Field:
    # Points right: a shaft and a triangular head.
    shaft = _box(x + 0.45, y, 0.55, 0.26)
    slanted = (x - 1) * 0.8 + np.abs(y)
    head = np.maximum(slanted / math.hypot(0.8, 1), -x)
    return np.minimum(shaft, head)


def _semicircle(x: Field, y: Field) -> Field:
    # The upper half of a disc.
    return np.maximum(np.hypot(x, y) - 1, y)


_BOLT = np.array(
    [(0.2, -1), (-0.75, 0.2), (-0.15, 0.2), (-0.35, 1), (0.75, -0.3), (0.15, -0.3), (0.5, -1)],
    np.float32,
)


def _bolt(x: Field, y: Field) -> Field:
    # A polygon: distance to the nearest edge, negative where a ray crosses an odd number of edges.
    nearest = np.full(np.broadcast(x, y).shape, np.inf, np.float32)
    inside = np.zeros(nearest.shape, bool)
    for (ax, ay), (bx, by) in zip(_BOLT, np.roll(_BOLT, -1, axis=0), strict=True):
        edge_x, edge_y, to_x, to_y = bx - ax, by - ay, x - ax, y - ay
        along = np.clip((to_x * edge_x + to_y * edge_y) / (edge_x**2 + edge_y**2), 0, 1)
        nearest = np.minimum(nearest, np.hypot(to_x - edge_x * along, to_y - edge_y * along))
        if edge_y:
            inside ^= ((ay > y) != (by > y)) & (to_x < edge_x * to_y / edge_y)
    return np.where(inside, -nearest, nearest)


_RAW: Mapping[str, Outline] = MappingProxyType(
    {
        "circle": _circle,
        "square": _square,
        "triangle": _triangle,
        "diamond": _diamond,
        "star": _star,
        "heart": _heart,
        "cross": _cross,
        "ring": _ring,
        "moon": _moon,
        "arrow": _arrow,
        "semicircle": _semicircle,
        "bolt": _bolt,
    }
)


@functools.cache
def raw_box(shape: str) -> Box:
    """The bounding box of an outline before it is put into the common frame."""
    axis = np.linspace(-1.5, 1.5, 1501, dtype=np.float32)
    inside = _RAW[shape](*np.meshgrid(axis, axis)) < 0
    columns, rows = axis[inside.any(axis=0)], axis[inside.any(axis=1)]
    return Box(
        float(columns[0] + columns[-1]) / 2,
        float(rows[0] + rows[-1]) / 2,
        float(columns[-1] - columns[0]) / 2,
        float(rows[-1] - rows[0]) / 2,
    )


def distance(shape: str, x: Field, y: Field) -> Field:
    """Signed distance (negative inside) to the outline of `shape` in the common frame."""
    box = raw_box(shape)
    longer = max(box.half_width, box.half_height)
    return _RAW[shape](x * longer + box.centre_x, y * longer + box.centre_y) / longer


@functools.cache
def moments(shape: str) -> Moments:
    """Area and centroid, by counting points."""
    axis = np.linspace(-1, 1, 801, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    inside = distance(shape, x, y) < 0
    return Moments(4 * float(inside.mean()), float(x[inside].mean()), float(y[inside].mean()))
