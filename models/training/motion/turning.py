"""See how far an object is turned: the angle at which its outline lies best over its mask."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from models.training import masks
from models.training.motion.movements import ROUND_SHAPES
from models.training.outlines import moments
from models.training.painting import turned
from models.training.seeing import LEAST_OVERLAP, overlap
from models.training.vocabulary import SHAPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from models.training.masks import Mask

PERIODS: Mapping[str, int] = MappingProxyType(
    {"square": 90, "cross": 90, "star": 72, "triangle": 120, "diamond": 180}
)
"""Degrees after which a shape looks the same again; 360 for others."""
COARSE, FINE = 12, 3
"""Steps of the search, in degrees."""
_LARGEST_PX = 40
"""Larger masks are thinned out first: angles are seen well enough."""


class Turn(NamedTuple):
    """Clockwise angle in degrees, up to the shape's period, and how well the outline fits."""

    degrees: float
    overlap: float


def turn_of(mask: Mask, shape: str) -> Turn:
    """How far a shape is turned that has this mask."""
    return _turn_of(*_packed(mask), shape)


def turned_shape_name(mask: Mask) -> str | None:
    """The outline that overlaps best at any angle, if it overlaps enough."""
    packed = _packed(mask)
    fits = {shape: _turn_of(*packed, shape).overlap for shape in SHAPES}
    best = max(fits, key=fits.__getitem__)
    return best if fits[best] >= LEAST_OVERLAP else None


def unwound(degrees: Sequence[float], shape: str) -> NDArray[np.float64]:
    """Angles over time without the jumps where the shape looks the same again."""
    return np.unwrap(np.asarray(degrees, float), period=PERIODS.get(shape, 360))


def pivot_of(mask: Mask, shape: str, degrees: float) -> tuple[float, float]:
    """The point that an object turns about, from the middle of the picture, in half sides."""
    area, centre_x, centre_y = moments(shape)
    scale = (mask.sum() / area) ** 0.5
    across, down = turned(np.float32(centre_x), np.float32(centre_y), -np.radians(degrees))
    rows, columns = np.nonzero(mask)
    half = min(mask.shape) / 2
    return (
        (columns.mean() + 0.5 - mask.shape[1] / 2 - scale * float(across)) / half,
        (rows.mean() + 0.5 - mask.shape[0] / 2 - scale * float(down)) / half,
    )


def _packed(mask: Mask) -> tuple[bytes, int]:
    """The part of the mask that is not empty, with a margin, thinned out; as a key for a cache."""
    left, right, top, bottom = masks.box(mask)
    stride = max(1, max(right - left, bottom - top) // _LARGEST_PX)
    part = np.pad(mask[top:bottom, left:right], max(2, (right - left) // 4))[::stride, ::stride]
    return part.tobytes(), part.shape[1]


@functools.lru_cache(maxsize=4096)
def _turn_of(packed: bytes, width: int, shape: str) -> Turn:
    mask = np.frombuffer(packed, bool).reshape(-1, width)
    if shape in ROUND_SHAPES:
        return Turn(0.0, overlap(mask, shape))
    period = PERIODS.get(shape, 360)
    coarse = _best(mask, shape, range(0, period, COARSE))
    fine = range(int(coarse.degrees) - COARSE + FINE, int(coarse.degrees) + COARSE, FINE)
    best = _best(mask, shape, fine)
    return Turn(best.degrees % period, best.overlap)


def _best(mask: Mask, shape: str, angles: range) -> Turn:
    turns = [Turn(angle, overlap(mask, shape, np.radians(angle))) for angle in angles]
    return max(turns, key=lambda turn: turn.overlap)
