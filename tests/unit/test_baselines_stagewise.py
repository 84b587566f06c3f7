"""Stage-level baselines: stages on their own devices, pools where the placement has them."""

from __future__ import annotations

from engine.types import StageKind
from schedulers.baselines.catalogue import STAGE_LEVEL
from tests.support.clusters import COST, LONG, MIDDLE, MIX, SHORT, a_cluster, a_ready

ENCODE, DIFFUSE, DECODE = StageKind
POOLS = {"n1g7": DECODE, "n1g6": ENCODE}


def test_decodes_and_encodes_go_to_their_pools() -> None:
    for name, build in STAGE_LEVEL.items():
        tasks = [a_ready("d", kind=DECODE, came_from=("n0g0",)), a_ready("e", sequence=1)]
        plan = build(COST, MIX).plan(tasks, a_cluster(nodes=2, pools=POOLS))
        taken = {a.task.request.id: a.team for a in plan.assignments}
        assert taken == {"d": ("n1g7",), "e": ("n1g6",)}, name


def test_a_decode_waits_for_a_full_pool_instead_of_taking_a_primary() -> None:
    for name, build in STAGE_LEVEL.items():
        task = a_ready("d", LONG, kind=DECODE, came_from=("n0g0",))
        view = a_cluster(nodes=2, pools=POOLS, busy=["n1g7"])
        plan = build(COST, MIX).plan([task], view)
        assert [h.task.id for h in plan.held] == [task.id], name


def test_without_a_pool_a_decode_takes_one_device_of_its_team() -> None:
    task = a_ready("d", kind=DECODE, came_from=("n0g4", "n0g5"))
    plan = STAGE_LEVEL["b6"](COST, MIX).plan([task], a_cluster())
    assert [a.team for a in plan.assignments] == [("n0g4",)]


def test_bucketed_diffuses_are_served_in_order_of_arrival() -> None:
    second = a_ready("second", LONG, DIFFUSE, arrival_s=1.0, sequence=1, deadline_s=2.0)
    first = a_ready("first", LONG, DIFFUSE)
    plan = STAGE_LEVEL["b5"](COST, MIX).plan([second, first], a_cluster())
    assert [a.task.request.id for a in plan.assignments] == ["first"]
    assert [h.task.request.id for h in plan.held] == ["second"]


def test_buckets_are_cut_from_the_devices_that_diffuse() -> None:
    tasks = [a_ready(f"r{i}", MIDDLE, DIFFUSE, sequence=i) for i in range(40)]
    plan = STAGE_LEVEL["b5"](COST, MIX).plan(tasks, a_cluster(nodes=4, pools=POOLS))
    assert plan.assignments
    assert not {d for a in plan.assignments for d in a.team} & set(POOLS)


def test_the_dynamic_one_starts_whatever_fits_shortest_first() -> None:
    tasks = [
        a_ready("long", LONG, DIFFUSE),
        a_ready("middle", MIDDLE, DIFFUSE, sequence=1),
        a_ready("short", SHORT, DIFFUSE, sequence=2),
    ]
    plan = STAGE_LEVEL["b6"](COST, MIX).plan(tasks, a_cluster(busy=["n0g0"]))
    assert [(a.task.request.id, a.degree) for a in plan.assignments] == [
        ("short", 1),
        ("middle", 2),
    ]


def test_encodes_run_together() -> None:
    tasks = [a_ready(f"r{i}", sequence=i) for i in range(3)]
    [launch] = STAGE_LEVEL["b6"](COST, MIX).plan(tasks, a_cluster()).assignments
    assert len(launch.tasks) == 3
