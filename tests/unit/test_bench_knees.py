"""The search for knees of goodput curves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scheduling.knees import GRID, HIGHEST, LOWEST, Curve, around, crossing, knee, search


def _searched(attainment: Callable[[int], float]) -> Curve:
    found: Curve = {}
    for step in search(found):
        assert step not in found
        found[step] = attainment(step)
    return found


def _falling(k99: int, k90: int) -> Callable[[int], float]:
    return lambda step: 1.0 if step <= k99 else 0.95 if step <= k90 else 0.8


class TestSearch:
    """Halving on a grid of 4 %."""

    @given(st.integers(LOWEST + 8, HIGHEST - 9), st.integers(0, 8))
    def test_it_finds_both_knees_of_a_falling_curve(self, k99: int, width: int) -> None:
        found = _searched(_falling(k99, k99 + width))
        assert knee(found, 0.99) == GRID[k99]
        assert knee(found, 0.90) == GRID[k99 + width]

    def test_it_stops_at_the_end_of_the_grid(self) -> None:
        found = _searched(lambda _step: 1.0)
        assert knee(found, 0.90) == GRID[HIGHEST]

    def test_a_policy_that_never_reaches_a_level_has_no_knee(self) -> None:
        assert knee(_searched(lambda _step: 0.3), 0.90) is None

    def test_it_goes_on_above_the_knee_until_half_are_late(self) -> None:
        found = _searched(lambda step: 1.0 if step <= 2 else 0.4)
        assert max(found) <= 6

    def test_a_knee_is_below_the_first_failure(self) -> None:
        assert knee({0: 1.0, 4: 0.8, 8: 0.95}, 0.90) == pytest.approx(GRID[0])


class TestAround:
    """The 90 % knee alone, from a guess."""

    @given(st.integers(LOWEST + 8, HIGHEST - 9), st.integers(-8, 8))
    def test_it_finds_the_knee_from_a_guess_beside_it(self, k90: int, off: int) -> None:
        found: Curve = {}
        for step in around(found, begin=max(LOWEST, k90 + off)):
            assert step not in found
            found[step] = _falling(k90, k90)(step)
        assert knee(found, 0.90) == GRID[k90]


class TestCrossing:
    """Between two rates of the grid."""

    def test_it_is_where_the_line_between_them_falls_to_the_level(self) -> None:
        assert crossing({0: 0.92, 4: 0.88}, 0.90) == pytest.approx((GRID[0] + GRID[4]) / 2)

    def test_there_is_none_above_the_highest_rate_that_was_tried(self) -> None:
        assert crossing({0: 0.92, 4: 0.91}, 0.90) is None
