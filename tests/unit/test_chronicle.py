"""The history of a live engine: late devices, lost ones, several outputs, embeddings that were kept."""

from __future__ import annotations

import pytest

from engine.types import (
    Assignment,
    Degraded,
    DeviceId,
    DeviceInfo,
    GenerationRequest,
    NodeId,
    Placement,
    Purpose,
    StageKey,
    StageKind,
    StageTask,
    TaskId,
)
from schedulers.sim.audit import audit
from schedulers.sim.chronicle import Chronicle
from schedulers.sim.events import (
    DegradeEvent,
    DeviceReadyEvent,
    PlaceEvent,
    RunEvent,
    SimEvent,
    SwitchEvent,
)
from tests.support.builders import MIB, MODEL, a_request

A, B = DeviceId("cpu:0"), DeviceId("cpu:1")
STAGES = {kind: StageKey(MODEL, kind) for kind in StageKind}
WEIGHTS = dict.fromkeys(STAGES.values(), MIB)


class Hand:
    """A clock that is set, and shorthand for what an executor would tell."""

    def __init__(self, reserve_bytes: int = 0) -> None:
        self.now_s = 1000.0
        self.events: list[SimEvent] = []
        self.told = Chronicle(self, WEIGHTS, self.events.append, reserve_bytes=reserve_bytes)
        self.told.begin()

    def now(self) -> float:
        return self.now_s

    async def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s

    def up(self, device: DeviceId) -> None:
        self.told.device_ready(DeviceInfo(device, "here", 10 * MIB))
        for stage in STAGES.values():
            started_s, self.now_s = self.now_s, self.now_s + 1
            self.told.loaded(device, stage, started_s)

    def run(
        self,
        request: GenerationRequest,
        kind: StageKind,
        *,
        on: DeviceId = A,
        index: int = 0,
        outcome: str = "done",
        purpose: Purpose = Purpose.MAIN,
    ) -> None:
        task = a_task(request, kind, index, purpose)
        launch = Assignment(task=task, team=(on,), expected_s=1, activation_bytes=MIB, why="")
        started_s, self.now_s = self.now_s, self.now_s + 1
        steps = request.steps if kind is StageKind.DIFFUSE and outcome == "done" else 0
        self.told.ran(launch, started_s, (0, steps), outcome)


def a_task(
    request: GenerationRequest, kind: StageKind, index: int, purpose: Purpose = Purpose.MAIN
) -> StageTask:
    return StageTask(
        id=TaskId(f"{request.id}/{kind}/{index}"),
        request=request,
        node=NodeId(kind),
        stage=STAGES[kind],
        image_index=index,
        inputs=(),
        sequence=0,
        attempt=1,
        ready_s=0.0,
        purpose=purpose,
    )


def wish(hand: Hand, **changes: object) -> GenerationRequest:
    return a_request(arrival_s=hand.now_s, deadline_s=hand.now_s + 60, **changes)


def test_devices_that_come_up_one_after_the_other_pass_the_audit() -> None:
    hand = Hand(reserve_bytes=MIB)
    hand.up(A)
    request = wish(hand)
    hand.told.arrived(request)
    for kind in StageKind:
        hand.run(request, kind)
    hand.told.finished(request)
    hand.up(B)
    assert audit(hand.events) == []
    joined = [event for event in hand.events if isinstance(event, DeviceReadyEvent)]
    assert [(event.device, event.memory_bytes) for event in joined] == [(A, 9 * MIB), (B, 9 * MIB)]


def test_work_on_a_device_before_it_came_up_is_found() -> None:
    hand = Hand()
    hand.up(A)
    early = [e for e in hand.events if not isinstance(e, DeviceReadyEvent)]
    ready = DeviceReadyEvent(2.5, A, node="here", memory_bytes=10 * MIB)
    problems = audit([early[0], ready, *early[1:]])
    assert sum("is lost when" in problem for problem in problems) == 3


def test_each_of_several_outputs_is_a_request_of_its_own_that_shares_the_encode() -> None:
    hand = Hand()
    hand.up(A)
    request = wish(hand, n=2)
    hand.told.arrived(request)
    hand.run(request, StageKind.ENCODE)
    for index in (0, 1):
        hand.run(request, StageKind.DIFFUSE, index=index)
    for index in (0, 1):
        hand.run(request, StageKind.DECODE, index=index)
    hand.told.finished(request)
    assert audit(hand.events) == []
    runs = [event.requests for event in hand.events if isinstance(event, RunEvent)]
    assert runs == [("r1", "r1/1"), ("r1",), ("r1/1",), ("r1",), ("r1/1",)]


def test_a_run_ends_when_its_device_is_lost_although_the_engine_hears_of_it_later() -> None:
    hand = Hand()
    hand.up(A)
    request = wish(hand)
    hand.told.arrived(request)
    hand.now_s += 1
    hand.told.device_lost(A)
    hand.told.device_lost(A)  # a process that dies before it is up again
    hand.now_s -= 0.5  # the run began before
    hand.run(request, StageKind.ENCODE, outcome="failed")
    hand.up(A)
    for kind in StageKind:
        hand.run(request, kind)
    hand.told.finished(request)
    assert audit(hand.events) == []


def test_a_launch_that_came_after_its_device_was_lost_never_began() -> None:
    hand = Hand()
    hand.up(A)
    request = wish(hand)
    hand.told.arrived(request)
    hand.told.device_lost(A)
    hand.run(request, StageKind.ENCODE, outcome="failed")
    hand.up(A)
    for kind in StageKind:
        hand.run(request, kind)
    hand.told.finished(request)
    assert audit(hand.events) == []
    assert sum(isinstance(event, RunEvent) for event in hand.events) == len(StageKind)


@pytest.mark.parametrize("kept", [True, False])
def test_only_a_request_whose_embeddings_were_kept_may_skip_its_encode(*, kept: bool) -> None:
    hand = Hand()
    hand.up(A)
    request = wish(hand)
    hand.told.arrived(request, encoded=kept)
    hand.run(request, StageKind.DIFFUSE)
    hand.run(request, StageKind.DECODE)
    hand.told.finished(request)
    assert (audit(hand.events) == []) is kept


def test_a_launch_that_was_sent_early_begins_when_the_one_before_has_ended() -> None:
    hand = Hand()
    hand.up(A)
    request = wish(hand)
    hand.told.arrived(request)
    hand.run(request, StageKind.ENCODE)
    hand.now_s -= 0.75  # all three were sent at once
    hand.run(request, StageKind.DIFFUSE)
    hand.run(request, StageKind.DECODE)
    hand.told.finished(request)
    assert audit(hand.events) == []


def test_a_second_engine_repeats_no_name_and_finds_its_devices_empty() -> None:
    hand = Hand()
    for _life in (1, 2):
        hand.up(A)
        request = wish(hand)
        hand.told.arrived(request)
        for kind in StageKind:
            hand.run(request, kind)
        hand.told.finished(request)
        hand.told.ended()
    assert audit(hand.events) == []


def test_nothing_is_told_before_the_history_begins() -> None:
    events: list[SimEvent] = []
    silent = Chronicle(Hand(), WEIGHTS, events.append)
    request = a_request()
    silent.arrived(request)
    silent.device_ready(DeviceInfo(A, "here", MIB))
    silent.rejected(request, "no")
    assert events == []


PLACED = Placement(1, {A: frozenset({STAGES[StageKind.ENCODE]})}, "There was none.")


def placements(events: list[SimEvent]) -> list[SimEvent]:
    return [event for event in events if isinstance(event, PlaceEvent | SwitchEvent)]


def test_a_placement_says_what_each_device_should_hold_and_why() -> None:
    hand = Hand()
    hand.told.placed(PLACED, is_switch=False)
    hand.told.placed(Placement(2, {A: frozenset(STAGES.values())}), is_switch=True)
    all_three = ("tiny/decode", "tiny/diffuse", "tiny/encode")
    assert placements(hand.events) == [
        PlaceEvent(0.0, 1, {A: ("tiny/encode",)}, "There was none."),
        SwitchEvent(0.0, 2, {A: all_three}),
    ]


def test_a_history_begins_with_the_placement_that_is_in_force() -> None:
    events: list[SimEvent] = []
    told = Chronicle(Hand(), WEIGHTS, events.append)
    told.placed(PLACED, is_switch=False)
    assert events == []
    told.begin()
    assert [type(event).__name__ for event in events] == ["ClusterEvent", "PlaceEvent"]


def test_a_partial_image_and_a_source_are_no_steps_of_the_request() -> None:
    hand = Hand()
    hand.up(A)
    request = wish(hand)
    hand.told.arrived(request)
    hand.run(request, StageKind.DECODE, purpose=Purpose.IMAGE_ENCODE)
    hand.run(request, StageKind.ENCODE)
    hand.run(request, StageKind.DIFFUSE)
    hand.run(request, StageKind.DECODE, purpose=Purpose.PREVIEW)
    hand.run(request, StageKind.DECODE)
    hand.told.finished(request)
    assert audit(hand.events) == []
    told = [e.purpose for e in hand.events if isinstance(e, RunEvent)]
    assert told == ["image_encode", "main", "main", "preview", "main"]


def test_what_was_admitted_with_fewer_steps_is_told_for_each_output() -> None:
    hand = Hand()
    hand.up(A)
    how = Degraded(wished_steps=8, least_steps=1, used_steps=2, late_s=3.0)
    hand.told.arrived(wish(hand, n=2, degraded=how))
    told = [event for event in hand.events if isinstance(event, DegradeEvent)]
    assert [(event.request, event.wished, event.steps) for event in told] == [
        ("r1", 8, 2),
        ("r1/1", 8, 2),
    ]
