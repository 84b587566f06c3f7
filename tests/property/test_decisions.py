"""Decisions over random clusters and queues: nothing is promised twice, lost, or starved."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.types import (
    Assignment,
    ClusterView,
    DispatchPlan,
    RunningView,
    Shape,
    StageKind,
    StageTask,
)
from schedulers.cost import CostModel
from schedulers.dispatch.knobs import Knobs
from schedulers.dispatch.trident import TridentDispatcher
from tests.support.clusters import LONG, MIDDLE, SHORT, SPECS, a_cluster, a_ready, batched

ENCODE, DIFFUSE, DECODE = StageKind
COST = CostModel(SPECS, batched(1.6, DIFFUSE, DECODE), learn=False)
SHAPES = (SHORT, MIDDLE, LONG)
POOLS = {"n1g7": DECODE, "n1g6": ENCODE}

wishes = st.tuples(
    st.sampled_from(SHAPES),
    st.sampled_from((ENCODE, DIFFUSE, DECODE)),
    st.floats(0.0, 50.0),  # arrival
    st.floats(0.5, 200.0),  # deadline after arrival
    st.sampled_from(("a", "b")),
    st.integers(-1, 1),
)
knobs = st.builds(
    Knobs,
    background=st.booleans(),
    preempt=st.booleans(),
    demote=st.booleans(),
    scale_up=st.booleans(),
    spill=st.booleans(),
    reserve=st.booleans(),
    claim=st.booleans(),
    wait_guard=st.sampled_from((0.0, 0.25)),
    deadline_order=st.booleans(),
    elders_per_16_nodes=st.sampled_from((0, 16)),
    step_batch=st.sampled_from((1, 4)),
    decode_batch=st.sampled_from((1, 4)),
)


def tasks_of(drawn: Sequence[tuple[Shape, StageKind, float, float, str, int]]) -> list[StageTask]:
    tasks = []
    for i, (shape, kind, arrival_s, slack_s, tenant, priority) in enumerate(drawn):
        task = a_ready(
            f"r{i}",
            shape,
            kind,
            sequence=i,
            arrival_s=arrival_s,
            deadline_s=arrival_s + slack_s,
            came_from=("n0g0",) if kind is not ENCODE else (),
        )
        request = msgspec.structs.replace(task.request, tenant=tenant, priority=priority)
        tasks.append(msgspec.structs.replace(task, request=request))
    return tasks


def busy_view(nodes: int, teams: Sequence[tuple[int, int, int]], *, pooled: bool) -> ClusterView:
    """Some aligned teams diffuse: (node, first device, degree), as far as they do not overlap."""
    taken: set[str] = set()
    running = []
    for i, (node, first, degree) in enumerate(teams):
        start = first - first % degree
        team = tuple(f"n{node % nodes}g{g}" for g in range(start, start + degree))
        if taken & set(team) or (pooled and set(team) & set(POOLS)):
            continue
        taken |= set(team)
        shape = SHORT if degree == 1 else MIDDLE
        task = a_ready(f"x{i}", shape, DIFFUSE, deadline_s=60.0 + 90.0 * (i % 2), sequence=900 + i)
        step_s = COST.step_s(task.request.model, shape, degree)
        launch = Assignment(task=task, team=team, expected_s=6 * step_s, activation_bytes=0, why="")
        running.append(
            RunningView(
                assignment=launch,
                started_s=50.0 - step_s,
                ends_s=50.0 + 5 * step_s,
                step=1,
                step_at_s=50.0,
                is_changing=False,
            )
        )
    return a_cluster(
        nodes,
        busy=taken,
        pools=POOLS if pooled and nodes > 1 else None,
        now_s=50.0,
        running=tuple(running),
    )


def check(plan: DispatchPlan, ready: Sequence[StageTask], view: ClusterView) -> None:
    devices = {seen.info.id: seen for seen in view.devices}
    idle = {d for d, seen in devices.items() if seen.busy_until_s is None}
    promised = [d for a in plan.assignments for d in a.team]
    held_by = {r.assignment.task.id: set(r.assignment.team) for r in view.running}
    for resize in plan.resizes:
        promised += [d for d in resize.onward.team if d not in held_by[resize.task]]
    assert len(promised) == len(set(promised))
    assert set(promised) <= idle
    for launch in (*plan.assignments, *(resize.onward for resize in plan.resizes)):
        task, degree = launch.task, launch.degree
        assert len({devices[d].info.node for d in launch.team}) == 1
        needed = view.weight_bytes[task.stage] + launch.activation_bytes
        assert all(devices[d].capacity_bytes >= needed for d in launch.team)
        assert all(task.stage in devices[d].desired for d in launch.team)
        least = COST.min_degree(task.request.model, task.request.shape)
        assert degree >= (least if task.stage.kind is DIFFUSE else 1)
    decided = [t.id for a in plan.assignments for t in a.tasks]
    decided += [held.task.id for held in plan.held]
    assert sorted(decided) == sorted(task.id for task in ready)
    changed = [pause.task for pause in plan.pauses] + [resize.task for resize in plan.resizes]
    assert len(changed) == len(set(changed))


def check_holds(dispatcher: TridentDispatcher, plan: DispatchPlan, view: ClusterView) -> None:
    """Who is held for waits, and no diffuse of another takes for longer what is kept for it."""
    waiting = {held.task.request.id for held in plan.held}
    node_of = {seen.info.id: seen.info.node for seen in view.devices}
    for node, hold in dispatcher._holds.items():
        assert hold.request in waiting
        launched = [a for a in plan.assignments if node_of[a.team[0]] == node]
        foreign = [
            a
            for a in launched
            if a.task.stage.kind is DIFFUSE and view.now_s + a.expected_s > hold.until_s + 1e-6
        ]
        if foreign and hold.stage is not None:
            idle = [
                seen.info.id
                for seen in view.devices
                if seen.busy_until_s is None
                and seen.info.node == node
                and hold.stage in seen.desired
            ]
            left = set(idle) - {device for a in launched for device in a.team}
            assert len(left) + len(hold.coming) >= hold.degree


@settings(max_examples=150, deadline=None)
@given(
    st.lists(wishes, max_size=25),
    st.integers(1, 4),
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 7), st.sampled_from((1, 2, 4, 8))), max_size=12
    ),
    st.booleans(),
    knobs,
)
def test_every_task_is_decided_once_and_no_device_or_byte_is_promised_twice(
    drawn: list[tuple[Shape, StageKind, float, float, str, int]],
    nodes: int,
    teams: list[tuple[int, int, int]],
    pooled: bool,  # noqa: FBT001 - drawn
    chosen: Knobs,
) -> None:
    ready = tasks_of(drawn)
    view = busy_view(nodes, teams, pooled=pooled)
    dispatcher = TridentDispatcher(COST, chosen)
    for _again in range(2):  # the second time with whatever holds the first has made
        plan = dispatcher.plan(ready, view)
        check(plan, ready, view)
        check_holds(dispatcher, plan, view)


@settings(max_examples=60, deadline=None)
@given(st.lists(wishes, min_size=1, max_size=20), st.integers(1, 3))
def test_with_the_bound_on_the_oldest_late_request_starts_as_soon_as_anything_can(
    drawn: list[tuple[Shape, StageKind, float, float, str, int]], nodes: int
) -> None:
    """The starvation bound: past `elder_age` references only older late requests go before it."""
    ready = [
        msgspec.structs.replace(task, stage=a_ready("x", kind=DIFFUSE).stage)
        for task in tasks_of(drawn)
    ]
    elder = a_ready("elder", LONG, DIFFUSE, arrival_s=-1e4, deadline_s=-9e3, sequence=99)
    plan = TridentDispatcher(COST, Knobs(elders_per_16_nodes=1)).plan(
        [*ready, elder], a_cluster(nodes, now_s=50.0)
    )
    assert elder.id in {a.task.id for a in plan.assignments}


@settings(max_examples=40, deadline=None)
@given(st.lists(wishes, max_size=20), st.randoms(use_true_random=False))
def test_ids_and_the_order_of_offering_decide_nothing(
    drawn: list[tuple[Shape, StageKind, float, float, str, int]], rng: object
) -> None:
    ready = tasks_of(drawn)
    renamed = [
        msgspec.structs.replace(
            t, request=msgspec.structs.replace(t.request, id=f"{97 * i % 89}"), id=f"{97 * i % 89}"
        )
        for i, t in enumerate(ready)
    ]
    rng.shuffle(renamed)  # type: ignore[attr-defined]

    def outcome(tasks: list[StageTask]) -> list[tuple[int, tuple[str, ...]]]:
        plan = TridentDispatcher(COST).plan(tasks, a_cluster(2))
        return sorted((t.sequence, a.team) for a in plan.assignments for t in a.tasks)

    assert outcome(ready) == outcome(renamed)
