"""TridentServe as published: its program, its rounds and the teams that follow from them."""

from __future__ import annotations

import random
from itertools import product

import pytest

from engine.types import ClusterView, StageKind, StageTask
from schedulers.baselines.dispatcher import PLAIN, BaselineDispatcher
from schedulers.baselines.paper import PaperRule
from schedulers.baselines.primaries import Primary, primaries
from schedulers.baselines.program import choose
from schedulers.baselines.ticks import Ticks
from schedulers.dispatch.board import Layout
from schedulers.dispatch.prospects import Curves
from schedulers.dispatch.round import Round
from tests.support.clusters import COST, LONG, MIDDLE, PROFILE, SHORT, a_cluster, a_ready

ENCODE, DIFFUSE, DECODE = StageKind
POOLS = {"n1g7": DECODE, "n1g6": ENCODE}


def paper() -> BaselineDispatcher:
    return BaselineDispatcher(COST, PaperRule())


def a_round(view: ClusterView) -> Round:
    curves = Curves(COST, PLAIN.least_gain)
    return Round(view, Layout(view), COST, curves, knobs=PLAIN, holds={})


def chosen(tasks: list[StageTask], view: ClusterView) -> dict[str, int]:
    decision = a_round(view)
    choices = choose(decision, tasks, primaries(decision, ()))
    return {choice.task.request.id: choice.degree for choice in choices}


class TestProgram:
    def test_on_time_work_is_worth_the_same_so_many_narrow_beat_one_wide(self) -> None:
        wide = a_ready("wide", LONG)
        narrow = [a_ready(f"n{i}", SHORT, sequence=i + 1) for i in range(8)]
        assert set(chosen([wide, *narrow], a_cluster())) == {f"n{i}" for i in range(8)}

    def test_late_work_is_worth_less_at_first_and_as_much_in_the_end(self) -> None:
        view = a_cluster(per_node=1, now_s=1000.0)
        fresh = a_ready("fresh", sequence=1, arrival_s=1000.0, deadline_s=2000.0)
        bit_late = a_ready("late", deadline_s=1000.0)
        assert list(chosen([bit_late, fresh], view)) == ["fresh"]
        very_late = a_ready("late", deadline_s=500.0)
        assert list(chosen([very_late, fresh], view)) == ["late"]

    def test_only_efficient_degrees_are_options(self) -> None:
        assert chosen([a_ready("r", SHORT)], a_cluster()) == {"r": 1}
        assert chosen([a_ready("r", MIDDLE)], a_cluster()) == {"r": 2}

    def test_a_degree_that_memory_forces_is_one_however_inefficient(self) -> None:
        shape = next(
            s
            for s in PROFILE.models[str(a_ready("r").request.model)].shapes
            if s.frames == 65 and s.pixels > 6e7
        )
        assert chosen([a_ready("r", shape)], a_cluster()) == {"r": 8}

    def test_a_team_never_spans_nodes(self) -> None:
        busy = ["n0g0", "n1g0"]
        assert chosen([a_ready("r", LONG)], a_cluster(nodes=2, busy=busy)) == {}

    def test_equal_requests_are_chosen_in_order_of_arrival(self) -> None:
        tasks = [a_ready(f"r{i}", LONG, sequence=i, arrival_s=float(9 - i)) for i in range(4)]
        assert list(chosen(tasks, a_cluster(nodes=2))) == ["r3", "r2"]

    @pytest.mark.parametrize("seed", range(8))
    def test_nothing_is_worth_more(self, seed: int) -> None:
        """Small instances against all assignments of degrees to requests that fit the nodes."""
        rng = random.Random(seed)
        busy = [f"n{n}g{g}" for n in range(2) for g in range(8) if rng.random() < 0.5]
        view = a_cluster(nodes=2, busy=busy)
        shapes = [rng.choice([SHORT, MIDDLE, LONG]) for _ in range(5)]
        tasks = [a_ready(f"r{i}", shape, sequence=i) for i, shape in enumerate(shapes)]
        degree = {SHORT: 1, MIDDLE: 2, LONG: 8}
        rooms = [8 - sum(b.startswith(f"n{n}") for b in busy) for n in range(2)]
        best = 0
        for seats in product([None, 0, 1], repeat=5):
            used = [0, 0]
            for shape, seat in zip(shapes, seats, strict=True):
                if seat is not None:
                    used[seat] += degree[shape]
            if all(u <= room for u, room in zip(used, rooms, strict=True)):
                best = max(
                    best,
                    sum(
                        1000 + degree[s]
                        for s, seat in zip(shapes, seats, strict=True)
                        if seat is not None
                    ),
                )
        assert sum(1000 + k for k in chosen(tasks, view).values()) == best


class TestPrimary:
    def test_a_team_comes_from_the_node_with_the_most_idle_devices(self) -> None:
        decision = a_round(a_cluster(nodes=2, busy=["n0g0"]))
        [primary] = primaries(decision, ())
        team = primary.take(2)
        assert team is not None
        assert [device[:2] for device in team] == ["n1", "n1"]

    def test_reserved_and_busy_devices_are_not_offered(self) -> None:
        decision = a_round(a_cluster(busy=["n0g0"]))
        [primary] = primaries(decision, {"n0g1", "n0g2"})
        assert primary.teams(1) == 5

    def test_types_are_ranked_by_what_they_lack(self) -> None:
        stages = {kind: a_ready("r", kind=kind).stage for kind in StageKind}
        every = frozenset(stages.values())
        ranks = [
            Primary(every - {stages[kind] for kind in lacking}, 0, 8).replica_rank(stages[DIFFUSE])
            for lacking in ((), (ENCODE,), (DECODE,), (ENCODE, DECODE))
        ]
        assert ranks == [0, 1, 2, 3]


class TestRule:
    def test_the_team_is_the_requests_from_its_dispatch_to_the_end_of_its_diffuse(self) -> None:
        dispatcher, first = paper(), a_ready("r", LONG)
        plan = dispatcher.plan([first], a_cluster())
        assert [a.degree for a in plan.assignments] == [1]  # the encode, on its team
        diffuse = a_ready("r", LONG, DIFFUSE, came_from=plan.assignments[0].team)
        others = [a_ready(f"o{i}", SHORT, sequence=i + 1) for i in range(3)]
        plan = dispatcher.plan([diffuse, *others], a_cluster(now_s=0.6))
        assert [(a.task.request.id, a.degree) for a in plan.assignments] == [("r", 8)]
        decode = a_ready("r", LONG, DECODE, came_from=plan.assignments[0].team)
        plan = dispatcher.plan([decode, *others], a_cluster(now_s=30.0))
        assert [(a.task.request.id, a.degree) for a in plan.assignments] == [
            ("r", 1), ("o0", 1), ("o1", 1), ("o2", 1),
        ]  # fmt: skip

    def test_between_rounds_nothing_is_dispatched(self) -> None:
        dispatcher = paper()
        plan = dispatcher.plan([a_ready("r")], a_cluster(now_s=0.2))
        assert not plan.assignments
        assert plan.next_decision_at_s == pytest.approx(0.5)
        plan = dispatcher.plan([a_ready("r")], a_cluster(now_s=0.5))
        assert [a.task.request.id for a in plan.assignments] == ["r"]

    def test_a_team_that_lost_a_device_is_replaced(self) -> None:
        dispatcher = paper()
        [launch] = dispatcher.plan([a_ready("r", MIDDLE)], a_cluster()).assignments
        lost = launch.team[0]
        again = a_ready("r", MIDDLE, attempt=2)
        plan = dispatcher.plan([again], a_cluster(lost=[lost], now_s=1.0))
        assert [a.team[0] == lost for a in plan.assignments] == [False]

    def test_a_decode_goes_to_the_pool_if_its_team_does_not_hold_it(self) -> None:
        pools = {f"n0g{g}": DIFFUSE for g in range(8)} | POOLS
        decode = a_ready("r", kind=DECODE, came_from=("n0g0", "n0g1"))
        plan = paper().plan([decode], a_cluster(nodes=2, pools=pools))
        assert [a.team for a in plan.assignments] == [("n1g7",)]

    def test_an_encode_goes_to_the_pool_if_its_team_does_not_hold_it(self) -> None:
        pools = {f"n{n}g{g}": DIFFUSE for n in range(2) for g in range(8)} | POOLS
        plan = paper().plan([a_ready("r")], a_cluster(nodes=2, pools=pools))
        assert [a.team for a in plan.assignments] == [("n1g6",)]


class TestTicks:
    def test_the_first_round_is_at_the_next_multiple(self) -> None:
        ticks = Ticks(0.5)
        assert not ticks.strike(10.2)
        assert ticks.next_s == pytest.approx(10.5)
        assert ticks.strike(10.5)
        assert ticks.next_s == pytest.approx(11.0)

    def test_a_round_that_comes_late_does_not_move_the_next(self) -> None:
        ticks = Ticks(0.5)
        ticks.strike(10.0)
        assert ticks.strike(10.7)
        assert ticks.next_s == pytest.approx(11.0)

    def test_at_rest_there_is_none(self) -> None:
        ticks = Ticks(0.5)
        ticks.strike(10.0)
        ticks.rest()
        assert ticks.next_s is None
