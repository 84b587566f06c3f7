"""When requests will be finished, and with how many steps late ones would be on time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.eta import degrade, predict
from engine.types import Degraded

DEADLINE_S = 100.0


def a_second_a_step(steps: int) -> float:
    return 90.0 + steps


def test_what_is_ahead_is_spread_over_the_devices() -> None:
    found = predict(40.0, rest_s=10.0, devices=4, now_s=1000.0)
    assert (found.earliest_s, found.expected_s, found.latest_s) == (1010.0, 1020.0, 1030.0)
    assert predict(40.0, rest_s=10.0, devices=0, now_s=0.0).expected_s == 50.0


def test_a_late_request_gets_the_most_steps_that_are_on_time() -> None:
    found = degrade(20, 4, a_second_a_step, deadline_s=DEADLINE_S)
    assert found == Degraded(wished_steps=20, least_steps=4, used_steps=10, late_s=10.0)


@pytest.mark.parametrize(
    ("wished", "least"),
    [
        (10, 4),  # on time as it is
        (20, 11),  # late even with the least
        (20, 20),  # allows nothing
    ],
)
def test_a_request_that_fewer_steps_would_not_help_keeps_its_own(wished: int, least: int) -> None:
    assert degrade(wished, least, a_second_a_step, deadline_s=DEADLINE_S) is None


@given(
    least=st.integers(1, 60),
    more=st.integers(0, 60),
    step_s=st.floats(0.01, 10.0),
    rest_s=st.floats(0.0, 200.0),
)
def test_it_is_the_most_that_is_on_time(
    least: int, more: int, step_s: float, rest_s: float
) -> None:
    wished = least + more

    def finish_s(steps: int) -> float:
        return rest_s + steps * step_s

    found = degrade(wished, least, finish_s, deadline_s=DEADLINE_S)
    timely = [k for k in range(least, wished + 1) if finish_s(k) <= DEADLINE_S]
    expected = timely[-1] if timely and timely[-1] < wished else None
    assert (None if found is None else found.used_steps) == expected
