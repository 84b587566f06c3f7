"""The clock of the server follows the machine's, and never steps back."""

from __future__ import annotations

import pytest

from engine import SystemClock


class Machine:
    """A machine whose wall clock may be set, and which may sleep."""

    def __init__(self) -> None:
        self.wall_s, self.steady_s = 1_000_000.0, 50.0
        self.clock = SystemClock(wall=lambda: self.wall_s, steady=lambda: self.steady_s)

    def pass_s(self, duration_s: float) -> None:
        self.wall_s += duration_s
        self.steady_s += duration_s

    @property
    def ahead_s(self) -> float:
        """How much later the clock says it is than the machine's wall clock."""
        return self.clock.now() - self.wall_s


def test_it_is_wall_time() -> None:
    machine = Machine()
    machine.pass_s(3.5)
    assert machine.clock.now() == machine.wall_s


def test_after_a_suspension_which_steady_time_leaves_out_it_is_right_again() -> None:
    machine = Machine()
    machine.wall_s += 3600.0
    assert machine.ahead_s == pytest.approx(0.0)
    machine.pass_s(5.0)
    assert machine.ahead_s == pytest.approx(0.0)


def test_a_wall_clock_that_is_set_back_is_awaited_at_half_speed() -> None:
    machine = Machine()
    before_s = machine.clock.now()
    machine.wall_s -= 60.0
    assert machine.clock.now() == before_s
    machine.pass_s(10.0)
    assert machine.clock.now() == before_s + 5.0
    for _ in range(600):
        machine.pass_s(1.0)
        machine.clock.now()
    assert abs(machine.ahead_s) <= 0.5


def test_a_wall_clock_that_is_set_back_for_a_moment_makes_no_lasting_difference() -> None:
    machine = Machine()
    machine.clock.now()
    machine.wall_s -= 60.0
    machine.clock.now()
    machine.wall_s += 60.0
    machine.pass_s(1.0)
    assert machine.ahead_s == pytest.approx(0.0)


def test_what_differs_by_less_than_processes_may_is_left_alone() -> None:
    machine = Machine()
    first_s = machine.clock.now()
    machine.wall_s += 0.3
    machine.steady_s += 0.1
    assert machine.clock.now() == pytest.approx(first_s + 0.1)
