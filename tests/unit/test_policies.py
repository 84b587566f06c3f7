"""The policies of a server without a profile: dispatch, the cost model, the static placement."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.messages import StageReport
from engine.types import (
    ClusterView,
    DeviceId,
    DeviceView,
    NodeId,
    Placement,
    Shape,
    StageKey,
    StageKind,
    StageTask,
    TaskId,
)
from schedulers.cost import CostModel
from schedulers.dispatch.knobs import WORKERS
from schedulers.dispatch.trident import TridentDispatcher
from schedulers.static import StaticPlanner, split
from tests.support.builders import MIB, MODEL, a_request, a_spec, devices

DIFFUSE = StageKey(MODEL, StageKind.DIFFUSE)


def a_task(name: str = "t", kind: StageKind = StageKind.DIFFUSE, **changes: object) -> StageTask:
    return StageTask(
        id=TaskId(name),
        request=a_request(name, **changes),
        node=NodeId("n"),
        stage=StageKey(MODEL, kind),
        image_index=0,
        inputs=(),
        sequence=0,
        attempt=1,
        ready_s=0.0,
    )


def a_view(*, busy: int = 0, resident: int = 0, count: int = 3, size: int = 1024) -> ClusterView:
    """`count` devices that want all stages: the first `busy` work, the last `resident` hold it."""
    infos = devices(count, memory_bytes=size * MIB)
    return ClusterView(
        configured=tuple(info.id for info in infos),
        devices=tuple(
            DeviceView(
                info=info,
                capacity_bytes=info.memory_bytes,
                free_bytes=info.memory_bytes,
                resident=frozenset({DIFFUSE}) if i >= count - resident else frozenset(),
                desired=frozenset(a_spec().stages),
                busy_until_s=9.0 if i < busy else None,
            )
            for i, info in enumerate(infos)
        ),
        weight_bytes={StageKey(MODEL, kind): 100 * MIB for kind in StageKind},
        now_s=0.0,
    )


def dispatcher() -> TridentDispatcher:
    return TridentDispatcher(CostModel([a_spec()]), WORKERS)


def test_the_device_that_holds_the_stage_is_preferred() -> None:
    [assignment] = dispatcher().plan([a_task()], a_view(resident=1)).assignments
    assert assignment.team == ("fake:2",)


def test_tasks_beyond_the_idle_devices_are_held_with_a_reason() -> None:
    plan = dispatcher().plan([a_task(f"t{i}") for i in range(4)], a_view(busy=1))
    assert len(plan.assignments) == 2
    assert ["waits" in held.reason for held in plan.held] == [True] * 2


def test_what_fits_nowhere_is_impossible_only_when_all_devices_are_up() -> None:
    small = a_view(size=50)
    [held] = dispatcher().plan([a_task()], small).held
    assert held.impossible
    lost = ClusterView(
        configured=(*small.configured, DeviceId("fake:lost")),
        devices=small.devices,
        weight_bytes=small.weight_bytes,
        now_s=0.0,
    )
    [held] = dispatcher().plan([a_task()], lost).held
    assert not held.impossible


@given(
    st.lists(st.tuples(st.floats(0, 9), st.floats(61, 99) | st.floats(0, 0.001)), max_size=12),
    st.integers(0, 4),
    st.integers(1, 4),
    st.sampled_from([64, 150, 1024]),
)
def test_every_task_is_placed_or_held_once_and_no_device_is_promised_twice(
    times: list[tuple[float, float]], busy: int, count: int, size: int
) -> None:
    tasks = [a_task(f"t{i}", deadline_s=d, arrival_s=a) for i, (a, d) in enumerate(times)]
    view = a_view(busy=busy, count=count, size=size)
    plan = dispatcher().plan(tasks, view)
    teams = [device for assignment in plan.assignments for device in assignment.team]
    assert len(teams) == len(set(teams))
    idle = {d.info.id: d for d in view.devices if d.busy_until_s is None}
    for assignment in plan.assignments:
        needed = view.weight_bytes[DIFFUSE] + assignment.activation_bytes
        assert needed <= idle[assignment.team[0]].capacity_bytes
    seen = [a.task.id for a in plan.assignments] + [h.task.id for h in plan.held]
    assert sorted(seen) == sorted(task.id for task in tasks)
    timely = [t for t in tasks if t.request.deadline_s > 60.0]  # all take seconds
    first_held = min((h.task.order for h in plan.held if h.task in timely), default=None)
    if first_held is not None:
        assert all(a.task.order <= first_held for a in plan.assignments)


@pytest.mark.parametrize(
    ("count", "roles"),
    [
        (1, ["encode+diffuse+decode"]),
        (2, ["encode+decode", "diffuse"]),
        (3, ["encode", "diffuse", "decode"]),
        (5, ["encode", "diffuse", "diffuse", "diffuse", "decode"]),
    ],
)
def test_the_static_split_gives_every_further_device_to_diffuse(
    count: int, roles: list[str]
) -> None:
    placed = split([info.id for info in devices(count)])
    assert ["+".join(kind.value for kind in kinds) for kinds in placed.values()] == roles


def test_a_static_planner_places_once() -> None:
    planner = StaticPlanner([a_spec()])
    view = a_view()
    placement = planner.place(view, None)
    assert isinstance(placement, Placement)
    assert placement.stages[view.configured[1]] == frozenset({DIFFUSE})
    assert planner.place(view, None) is None


def a_report(run_s: float, peak: int = 0) -> StageReport:
    return StageReport(
        task=TaskId("t"),
        kind=StageKind.DIFFUSE,
        receive_s=0.0,
        run_s=run_s,
        send_s=0.0,
        peak_memory_bytes=peak,
    )


def test_estimates_move_to_what_is_measured_for_that_shape_only() -> None:
    cost, task = CostModel([a_spec()]), a_task()
    other = a_request(shape=Shape(128, 128))
    before = cost.estimate(DIFFUSE, other)
    for _ in range(3):
        cost.observe(task, a_report(run_s=4.0, peak=7 * MIB))
    learned = cost.estimate(DIFFUSE, task.request)
    assert (learned.duration_s, learned.activation_bytes) == (pytest.approx(4.0), 7 * MIB)
    assert learned.measured
    assert cost.estimate(DIFFUSE, other) == before


def test_one_outlier_moves_an_estimate_by_less_than_a_third() -> None:
    cost, task = CostModel([a_spec()]), a_task()
    cost.observe(task, a_report(run_s=1.0))
    cost.observe(task, a_report(run_s=2.0))
    assert cost.estimate(DIFFUSE, task.request).duration_s == pytest.approx(1.3)


def test_a_larger_picture_and_more_steps_cost_more() -> None:
    cost = CostModel([a_spec()])
    small, large = a_request(), a_request(shape=Shape(256, 256))
    assert cost.latency_s(small) < cost.latency_s(large)
    assert cost.latency_s(small) < cost.latency_s(a_request(steps=40))
