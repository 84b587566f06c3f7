"""Pipeline-level baselines: who gets which team, in which order, and that nobody shares it."""

from __future__ import annotations

import pytest

from engine.types import DispatchPlan, Shape, StageKind
from schedulers.baselines.buckets import cut, shares_of
from schedulers.baselines.catalogue import PIPELINE_LEVEL
from schedulers.baselines.dispatcher import BaselineDispatcher
from schedulers.dispatch.board import Layout
from tests.support.clusters import COST, LONG, MIDDLE, MIX, SHORT, a_cluster, a_ready

ENCODE, DIFFUSE, DECODE = StageKind


def dispatcher(name: str) -> BaselineDispatcher:
    built = PIPELINE_LEVEL[name](COST, MIX)
    assert isinstance(built, BaselineDispatcher)
    return built


def teams(plan: DispatchPlan) -> dict[str, tuple[str, ...]]:
    return {a.task.request.id: tuple(a.team) for a in plan.assignments}


def held(plan: DispatchPlan) -> list[str]:
    return [h.task.request.id for h in plan.held]


@pytest.mark.parametrize("degree", [1, 2, 4, 8])
def test_a_static_deployment_has_equal_teams_inside_nodes(degree: int) -> None:
    view = a_cluster(nodes=2)
    tasks = [a_ready(f"r{i:02}", sequence=i) for i in range(20)]
    plan = dispatcher(f"b1-sp{degree}").plan(tasks, view)
    assert [a.degree for a in plan.assignments] == [degree] * min(20, 16 // degree)
    assert all(len({d.partition("g")[0] for d in a.team}) == 1 for a in plan.assignments)
    taken = [d for a in plan.assignments for d in a.team]
    assert len(taken) == len(set(taken))


def test_requests_get_teams_in_order_of_arrival_whatever_their_deadline() -> None:
    late = a_ready("late", arrival_s=1.0, sequence=1, deadline_s=2.0)
    early = a_ready("early", arrival_s=0.0, sequence=0)
    plan = dispatcher("b1-sp8").plan([late, early], a_cluster())
    assert (list(teams(plan)), held(plan)) == (["early"], ["late"])


@pytest.mark.parametrize("name", ["b1-sp4", "b2", "b3", "b4"])
@pytest.mark.parametrize("kind", [DIFFUSE, DECODE])
def test_a_request_goes_on_with_its_team_before_anyone_else(name: str, kind: StageKind) -> None:
    team = ("n0g0", "n0g1", "n0g2", "n0g3")
    goes_on = a_ready("on", kind=kind, came_from=team, arrival_s=9.0, sequence=9)
    plan = dispatcher(name).plan([a_ready("new"), goes_on], a_cluster(per_node=4))
    assert (teams(plan), held(plan)) == ({"on": team}, ["new"])


def test_a_team_is_kept_while_another_output_of_its_request_runs() -> None:
    team = ("n0g0", "n0g1", "n0g2", "n0g3")
    waits = a_ready("on", kind=DECODE, came_from=team)
    view = a_cluster(per_node=4, busy=team[:2])  # as if one of the team ran something still
    plan = dispatcher("b1-sp2").plan([waits, a_ready("new", sequence=1)], view)
    assert (teams(plan), held(plan)) == ({}, ["on", "new"])


def test_of_several_outputs_the_decode_comes_first() -> None:
    team = ("n0g0",)
    diffuse = a_ready("r", kind=DIFFUSE, came_from=team, image_index=0)
    decode = a_ready("r", kind=DECODE, came_from=team, image_index=1)
    plan = dispatcher("b1-sp1").plan([diffuse, decode], a_cluster(per_node=1))
    assert [a.task.stage.kind for a in plan.assignments] == [DECODE]


def test_a_request_whose_team_lost_a_device_gets_another_team() -> None:
    orphan = a_ready("r", kind=DIFFUSE, came_from=("n0g0", "n0g1"))
    plan = dispatcher("b1-sp2").plan([orphan], a_cluster(lost=["n0g1"]))
    [team] = teams(plan).values()
    assert len(team) == 2
    assert "n0g1" not in team


def test_static_teams_too_narrow_for_the_memory_refuse_with_the_reason() -> None:
    plan = dispatcher("b1-sp4").plan([a_ready("r", LONG)], a_cluster())
    [refused] = plan.held
    assert refused.impossible
    assert "needs a team of at least 8 devices" in refused.reason
    assert "have 4" in refused.reason


def test_nothing_is_refused_while_devices_are_missing() -> None:
    plan = dispatcher("b1-sp8").plan([a_ready("r", LONG)], a_cluster(lost=["n0g0"]))
    assert [h.impossible for h in plan.held] == [False]


def test_buckets_share_the_devices_by_the_work_of_their_sizes() -> None:
    shares = shares_of(MIX, COST, whole_pipeline=True)
    found = cut(Layout(a_cluster(nodes=16)), shares)
    devices = {degree: degree * len(teams) for degree, teams in found.items()}
    assert sum(devices.values()) == 128
    total = sum(shares.values())
    for degree, count in devices.items():
        assert abs(count - 128 * shares[degree] / total) <= 8 + degree
    taken = [device for teams in found.values() for team in teams for device in team]
    assert len(taken) == len(set(taken))
    assert all(
        len({d.partition("g")[0] for d in t}) == 1 for teams in found.values() for t in teams
    )


def test_on_one_node_the_widest_bucket_takes_all_when_the_others_do_not_fit() -> None:
    assert list(cut(Layout(a_cluster()), {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0})) == [8]


def test_a_bucket_exists_for_every_degree_that_fits() -> None:
    found = cut(Layout(a_cluster(nodes=2)), {1: 1.0, 2: 1.0, 4: 1.0, 8: 1000.0})
    assert sorted(found) == [1, 2, 4, 8]


def test_requests_of_a_bucket_do_not_wait_for_those_of_another() -> None:
    plan_of = dispatcher("b2").plan
    tasks = [a_ready(f"long{i}", LONG, sequence=i) for i in range(9)]
    plan = plan_of([*tasks, a_ready("short", SHORT, sequence=9)], a_cluster(nodes=4))
    assert {len(team) for name, team in teams(plan).items() if name != "short"} == {8}
    assert "short" in teams(plan)
    assert held(plan)


def test_strict_first_come_first_served_leaves_devices_idle_behind_a_wide_request() -> None:
    wide, narrow = a_ready("wide", LONG), a_ready("narrow", SHORT, sequence=1)
    plan = dispatcher("b3").plan([wide, narrow], a_cluster(busy=["n0g0"]))
    assert (teams(plan), held(plan)) == ({}, ["wide", "narrow"])


def test_shortest_remaining_time_first_lets_others_pass_and_starts_the_short_one_first() -> None:
    wide = a_ready("wide", LONG)
    middle, short = a_ready("middle", MIDDLE, sequence=1), a_ready("short", SHORT, sequence=2)
    plan = dispatcher("b4").plan([wide, middle, short], a_cluster(busy=["n0g0"]))
    assert list(teams(plan)) == ["short", "middle"]
    assert held(plan) == ["wide"]


@pytest.mark.parametrize(("shape", "degree"), [(SHORT, 1), (MIDDLE, 2), (LONG, 8)])
def test_the_degree_of_a_request_is_the_widest_that_is_efficient(shape: Shape, degree: int) -> None:
    [launch] = dispatcher("b3").plan([a_ready("r", shape)], a_cluster()).assignments
    assert launch.degree == degree


def test_the_fullest_node_with_room_is_chosen() -> None:
    busy = [f"n1g{g}" for g in range(5)]
    plan = dispatcher("b3").plan([a_ready("r", MIDDLE)], a_cluster(nodes=2, busy=busy))
    assert teams(plan) == {"r": ("n1g5", "n1g6")}


def test_every_ready_task_is_launched_or_held_once() -> None:
    tasks = [a_ready(f"r{i}", [SHORT, MIDDLE, LONG][i % 3], sequence=i) for i in range(12)]
    for name in PIPELINE_LEVEL:
        plan = dispatcher(name).plan(tasks, a_cluster(nodes=2))
        assert sorted([*teams(plan), *held(plan)]) == sorted(t.request.id for t in tasks), name
