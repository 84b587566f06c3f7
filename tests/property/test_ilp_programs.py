"""Packing programs: feasible, as good as brute force, between first fit and the relaxation."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from schedulers.dispatch.ilp import Demand, Outcome, Program, first_fit, relaxation, solve


@st.composite
def programs(draw: st.DrawFn, groups: int = 5, rows: int = 3, each: int = 3) -> Program:
    program = Program(draw(st.lists(st.integers(0, 8), min_size=1, max_size=rows)))
    last = len(program.capacities) - 1
    for group in range(draw(st.integers(1, groups))):
        for _option in range(draw(st.integers(1, each))):
            taken = draw(st.sets(st.integers(0, last), max_size=2))
            demands = [Demand(row, draw(st.sampled_from([1, 2, 4, 8]))) for row in sorted(taken)]
            program.add(group, draw(st.integers(-20, 2000)) / 4, demands)
    return program


def best_by_brute_force(program: Program) -> float:
    by_group: dict[int, list[int | None]] = {}
    for option, group in enumerate(program.groups):
        by_group.setdefault(group, [None]).append(option)
    choices = ([o for o in choice if o is not None] for choice in product(*by_group.values()))
    return max(program.worth(choice) for choice in choices if program.is_feasible(choice))


@settings(deadline=None)
@given(programs())
def test_a_solution_equals_brute_force(program: Program) -> None:
    solution = solve(program, 10.0)
    assert program.is_feasible(solution.chosen)
    assert abs(solution.worth - best_by_brute_force(program)) <= 1e-4
    assert solution.outcome in (Outcome.OBVIOUS, Outcome.OPTIMAL)
    assert solution.gap <= 1e-6


@settings(deadline=None, max_examples=40)
@given(programs(groups=20, rows=6, each=8))
def test_a_solution_lies_between_first_fit_and_the_relaxation(program: Program) -> None:
    solution = solve(program, 10.0)
    assert program.is_feasible(first_fit(program))
    assert program.worth(first_fit(program)) <= solution.worth + 1e-6
    assert solution.worth <= relaxation(program) + 1e-4
    assert solve(program, 10.0) == solution


@given(programs(groups=20, rows=6, each=8))
def test_without_time_the_answer_is_first_fit(program: Program) -> None:
    solution = solve(program, 0.0)
    assert solution.chosen == first_fit(program)
    assert solution.worth <= solution.bound
