"""Operations on masks of pixels, in numpy alone: connected regions, growing, filling, boxes."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Mask: TypeAlias = NDArray[np.bool_]  # (H, W)


def inner(mask: Mask, edge_px: int) -> Mask:
    """The mask without a border of the picture."""
    out = np.zeros_like(mask)
    out[edge_px:-edge_px, edge_px:-edge_px] = mask[edge_px:-edge_px, edge_px:-edge_px]
    return out


def grow(mask: Mask) -> Mask:
    """The mask and its four-neighbours."""
    out = mask.copy()
    out[1:] |= mask[:-1]
    out[:-1] |= mask[1:]
    out[:, 1:] |= mask[:, :-1]
    out[:, :-1] |= mask[:, 1:]
    return out


def shrink(mask: Mask) -> Mask:
    """The mask without pixels that have a four-neighbour outside it."""
    return ~grow(~mask)


def filled(mask: Mask) -> Mask:
    """The mask and its holes: all that cannot be reached from the picture's border."""
    outside = np.zeros_like(mask)
    outside[[0, -1]] = ~mask[[0, -1]]
    outside[:, [0, -1]] = ~mask[:, [0, -1]]
    while True:
        wider = grow(outside) & ~mask
        if (wider == outside).all():
            return ~outside
        outside = wider


def regions(mask: Mask, least_px: float) -> list[Mask]:
    """Four-connected regions of so many pixels or more, the largest first.

    The largest label of each spreads until nothing changes.
    """
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        spread = labels.copy()
        spread[1:] = np.maximum(spread[1:], labels[:-1])
        spread[:-1] = np.maximum(spread[:-1], labels[1:])
        spread[:, 1:] = np.maximum(spread[:, 1:], labels[:, :-1])
        spread[:, :-1] = np.maximum(spread[:, :-1], labels[:, 1:])
        spread[~mask] = 0
        if (spread == labels).all():
            break
        labels = spread
    names, sizes = np.unique(labels[mask], return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    return [labels == names[index] for index in order if sizes[index] >= least_px]


def box(mask: Mask) -> tuple[int, int, int, int]:
    """Left, right, top and bottom of a mask, in pixels; right and bottom are exclusive."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(columns[-1]) + 1, int(rows[0]), int(rows[-1]) + 1
