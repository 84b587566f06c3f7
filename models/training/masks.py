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
    labels = _labelled(~mask)
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return ~np.isin(labels, np.unique(border[border > 0]))


def regions(mask: Mask, least_px: float) -> list[Mask]:
    """Four-connected regions of so many pixels or more, the largest first."""
    labels = _labelled(mask)
    names, sizes = np.unique(labels[mask], return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    return [labels == names[index] for index in order if sizes[index] >= least_px]


def _labelled(mask: Mask) -> NDArray[np.int_]:
    """The same number, above 0, for all pixels of a four-connected region; 0 outside the mask.

    Numbers spread along whole rows and whole columns in turn until nothing changes.
    """
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        spread = _spread_along_rows(_spread_along_rows(labels, mask).T, mask.T).T
        if (spread == labels).all():
            return labels
        labels = spread


def _spread_along_rows(labels: NDArray[np.int_], mask: Mask) -> NDArray[np.int_]:
    """In every row, all pixels of the mask that follow each other get their largest number."""
    begins = mask.copy()
    begins[:, 1:] &= ~mask[:, :-1]
    starts = np.flatnonzero(begins[mask])
    if not len(starts):
        return labels
    largest = np.maximum.reduceat(labels[mask], starts)
    lengths = np.diff(starts, append=np.count_nonzero(mask))
    spread = labels.copy()
    spread[mask] = np.repeat(largest, lengths)
    return spread


def box(mask: Mask) -> tuple[int, int, int, int]:
    """Left, right, top and bottom of a mask, in pixels; right and bottom are exclusive."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(columns[-1]) + 1, int(rows[0]), int(rows[-1]) + 1
