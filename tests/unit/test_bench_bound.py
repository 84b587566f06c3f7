"""The bound that benchmark tables show beside policies."""

from __future__ import annotations

from itertools import combinations, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scheduling.bound import Piece, all_done_s, attainment, load, windows

PIECES = st.lists(
    st.builds(
        lambda arrival, slack, work: Piece(arrival, arrival + slack, work),
        st.integers(0, 6).map(float),
        st.integers(1, 6).map(float),
        st.integers(1, 6).map(float),
    ),
    min_size=1,
    max_size=5,
)


def _in_order(pieces: tuple[Piece, ...]) -> bool:
    """Say whether one machine of speed 1 has all on time, one after another in this order."""
    now_s = 0.0
    for piece in pieces:
        now_s = max(now_s, piece.arrival_s) + piece.work
        if now_s > piece.deadline_s:
            return False
    return True


def _best(pieces: list[Piece]) -> float:
    """Return what the best order of the best choice has on time, by trying all."""
    for count in range(len(pieces), 0, -1):
        for chosen in combinations(pieces, count):
            if any(_in_order(order) for order in permutations(chosen)):
                return count / len(pieces)
    return 0.0


class TestAttainment:
    """The share of requests that a fluid machine has on time."""

    def test_everything_fits_an_idle_machine(self) -> None:
        assert attainment([Piece(0, 10, 4), Piece(0, 10, 6)], gpus=1) == 1.0

    def test_the_dearest_work_is_dropped_first(self) -> None:
        assert attainment([Piece(0, 8, 8), Piece(0, 9, 4), Piece(0, 9, 4)], gpus=1) == 2 / 3

    def test_gpus_add_speed(self) -> None:
        assert attainment([Piece(0, 5, 8), Piece(0, 5, 8)], gpus=4) == 1.0

    def test_no_requests_have_no_attainment(self) -> None:
        assert attainment([], gpus=1) == 0.0

    @given(PIECES)
    def test_no_order_of_any_choice_beats_it(self, pieces: list[Piece]) -> None:
        assert attainment(pieces, gpus=1) >= _best(pieces) - 1e-9


class TestWindows:
    """The bound with arrivals honoured at some moments."""

    def test_work_of_late_arrivals_needs_late_capacity(self) -> None:
        early = [Piece(0, 1, 0.1)]
        late = [Piece(100, 101, 1.0), Piece(100, 101, 1.0)]
        assert attainment([*early, *late], gpus=1) == 1.0
        assert windows([*early, *late], 1, count=3) == pytest.approx(2 / 3)

    def test_what_separate_bursts_must_drop_adds_up(self) -> None:
        bursts = [Piece(at, at + 1.0, 1.0) for at in (0.0, 100.0, 200.0) for _ in range(2)]
        assert windows(bursts, 1, count=6) == pytest.approx(1 / 2)

    @given(PIECES, st.integers(1, 5))
    def test_it_is_never_looser_and_still_a_bound(self, pieces: list[Piece], count: int) -> None:
        bound = windows(pieces, 1, count=count)
        assert _best(pieces) - 1e-9 <= bound <= attainment(pieces, 1) + 1e-9


class TestAllDone:
    """The earliest moment at which all work can be done."""

    def test_work_that_comes_late_is_done_later(self) -> None:
        assert all_done_s([Piece(0, 9, 8.0), Piece(3, 9, 4.0)], gpus=4) == 4.0
        assert all_done_s([Piece(0, 9, 20.0), Piece(3, 9, 4.0)], gpus=4) == 6.0

    def test_nothing_is_done_at_once(self) -> None:
        assert all_done_s([], gpus=4) == 0.0


class TestLoad:
    """The offered load."""

    def test_it_is_work_over_capacity_while_requests_arrive(self) -> None:
        assert load([Piece(i, i + 9, 3.0) for i in range(11)], gpus=4) == 0.75

    def test_one_request_has_no_rate(self) -> None:
        assert load([Piece(0, 1, 1)], gpus=1) == 0.0
