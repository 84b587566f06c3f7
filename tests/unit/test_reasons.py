"""A reason is told once: at every launch, and whenever what a stage waits for is something else."""

from __future__ import annotations

import pytest

from engine.types import (
    Assignment,
    ClusterView,
    DeviceId,
    DispatchPlan,
    Held,
    Leg,
    NodeId,
    Pause,
    PlanId,
    Purpose,
    RequestId,
    Resize,
    RunningView,
    StageKey,
    StageKind,
    StageTask,
    TaskId,
)
from schedulers.sim import reasons
from schedulers.sim.events import DecideEvent
from schedulers.sim.reasons import Reasons
from tests.support.builders import MODEL, a_request

A, B = DeviceId("cpu:0"), DeviceId("cpu:1")


def a_task(kind: StageKind = StageKind.DIFFUSE, purpose: Purpose = Purpose.MAIN) -> StageTask:
    return StageTask(
        id=TaskId(f"r1/{kind}"),
        request=a_request(),
        node=NodeId(kind),
        stage=StageKey(MODEL, kind),
        image_index=0,
        inputs=(),
        sequence=0,
        attempt=1,
        ready_s=0.0,
        purpose=purpose,
    )


def a_launch(task: StageTask, *team: DeviceId, why: str = "it fits", **more: object) -> Assignment:
    return Assignment(task=task, team=team, expected_s=1, activation_bytes=0, why=why, **more)


def running(*launches: Assignment) -> ClusterView:
    views = tuple(
        RunningView(
            assignment=launch, started_s=0, ends_s=9, step=0, step_at_s=0, is_changing=False
        )
        for launch in launches
    )
    return ClusterView(configured=(), devices=(), weight_bytes={}, now_s=0.0, running=views)


@pytest.fixture
def told() -> Reasons:
    return Reasons(lambda task: (task.request.id,))


def whys(told: Reasons, view: ClusterView | None = None, **plan: object) -> list[str]:
    made = DispatchPlan(id=PlanId(1), **plan)
    return [event.why for event in told.of(made, view or running(), 1.0)]


def held(reason: str, task: StageTask | None = None) -> tuple[Held, ...]:
    return (Held(task or a_task(), reason),)


def test_a_launch_tells_its_team_and_why(told: Reasons) -> None:
    plan = DispatchPlan(id=PlanId(1), assignments=(a_launch(a_task(), A, B),))
    assert list(told.of(plan, running(), 2.5)) == [
        DecideEvent(
            t=2.5,
            request=RequestId("r1"),
            stage=StageKind.DIFFUSE,
            why="it fits",
            devices=(A, B),
        )
    ]


def test_stages_that_follow_in_the_same_launch_are_told_with_it(told: Reasons) -> None:
    legs = (Leg(StageKey(MODEL, StageKind.DECODE), 1.0, 0),)
    plan = DispatchPlan(id=PlanId(1), assignments=(a_launch(a_task(), A, then=legs),))
    found = [(event.stage, event.devices) for event in told.of(plan, running(), 0.0)]
    assert found == [(StageKind.DIFFUSE, (A,)), (StageKind.DECODE, (A,))]


def test_a_reason_to_wait_that_repeats_is_told_once_whatever_its_numbers(told: Reasons) -> None:
    assert whys(told, held=held("waits about 3.2 s")) == ["waits about 3.2 s"]
    assert whys(told, held=held("waits about 0.7 s")) == []
    assert whys(told, held=held("no room")) == ["no room"]


def test_after_a_launch_the_same_reason_is_news_again(told: Reasons) -> None:
    whys(told, held=held("no room"))
    whys(told, assignments=(a_launch(a_task(), A),))
    assert whys(told, held=held("no room")) == ["no room"]


def test_a_stop_and_a_change_of_team_say_why(told: Reasons) -> None:
    task = a_task()
    view = running(a_launch(task, A))
    assert whys(told, view, pauses=(Pause(task.id, "r2 is urgent"),)) == [
        "stops at its next step: r2 is urgent"
    ]
    wider = Resize(task.id, a_launch(task, A, B, why="cpu:1 is idle"))
    assert whys(told, view, resizes=(wider,)) == ["cpu:1 is idle"]


def test_a_preview_that_is_not_shown_is_no_news(told: Reasons) -> None:
    assert whys(told, held=held("in the way", a_task(StageKind.DECODE, Purpose.PREVIEW))) == []


def test_reasons_to_wait_are_bounded_but_launches_are_always_told(
    told: Reasons, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reasons, "MOST_WAITS", 3)
    assert sum(len(whys(told, held=held("ab"[i % 2]))) for i in range(10)) == 3
    assert whys(told, assignments=(a_launch(a_task(), A),)) == ["it fits"]


def test_what_was_told_of_a_request_that_ended_is_forgotten(told: Reasons) -> None:
    whys(told, held=held("no room"))
    told.forget(RequestId("r1"))
    assert (told._told, told._waits) == ({}, {})
