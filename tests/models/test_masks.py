"""Connected regions and holes, against a search pixel by pixel."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from models.training import masks

pictures = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))


def reached(mask: np.ndarray, start: tuple[int, int]) -> np.ndarray:
    """All pixels of the mask that can be reached from one of them in steps to four neighbours."""
    seen, todo = np.zeros_like(mask), [start]
    while todo:
        row, column = todo.pop()
        inside = 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1]
        if inside and mask[row, column] and not seen[row, column]:
            seen[row, column] = True
            todo += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
    return seen


@given(pictures)
def test_regions_are_what_can_be_reached_and_the_largest_comes_first(mask: np.ndarray) -> None:
    found = masks.regions(mask, least_px=1)
    sizes = [int(region.sum()) for region in found]
    assert sizes == sorted(sizes, reverse=True)
    assert np.array_equal(sum(found, np.zeros(mask.shape, int)), mask.astype(int))
    for region in found:
        assert np.array_equal(region, reached(mask, tuple(np.argwhere(region)[0])))


@given(pictures, st.integers(1, 9))
def test_small_regions_are_left_out(mask: np.ndarray, least_px: int) -> None:
    assert all(region.sum() >= least_px for region in masks.regions(mask, least_px))


@given(pictures)
def test_only_holes_are_filled(mask: np.ndarray) -> None:
    ways_out = np.pad(~mask, 1, constant_values=True)
    outside = reached(ways_out, (0, 0))[1:-1, 1:-1]
    assert np.array_equal(masks.filled(mask), ~outside)
