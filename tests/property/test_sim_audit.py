"""The auditor passes every valid history and finds every kind of corruption."""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.types import DeviceId, ModelId, RequestId, StageKind
from schedulers.sim.audit import MOST_PROBLEMS, audit
from schedulers.sim.events import (
    ArriveEvent,
    ClusterDevice,
    ClusterEvent,
    DegradeEvent,
    DeviceLostEvent,
    DeviceReadyEvent,
    EvictEvent,
    FinishEvent,
    LoadEvent,
    RejectEvent,
    ResidentStage,
    RunEvent,
    RunOutcome,
    SimEvent,
)
from tests.support.histories import MEMORY_BYTES, MODEL, WEIGHT_BYTES, history

SEEDS = st.integers(0, 10_000)
Corruption = Callable[[list[SimEvent], RunEvent], SimEvent | tuple[SimEvent, ...]]
CORRUPTIONS: dict[str, Corruption] = {}


def corruption(words: str) -> Callable[[Corruption], Corruption]:
    """Register what a good run becomes, or is joined by, and what the auditor must say."""

    def register(make: Corruption) -> Corruption:
        CORRUPTIONS[words] = make
        return make

    return register


def changed(event: RunEvent, **changes: object) -> RunEvent:
    return msgspec.structs.replace(event, **changes)


def arrival_of(events: list[SimEvent], run: RunEvent) -> ArriveEvent:
    return next(e for e in events if isinstance(e, ArriveEvent) and e.request == run.requests[0])


@corruption("has degree")
def _(_events: list[SimEvent], run: RunEvent) -> SimEvent:
    return changed(run, degree=run.degree + 1)


@corruption("several nodes")
def _(_events: list[SimEvent], run: RunEvent) -> SimEvent:
    return changed(run, devices=(DeviceId("g0"), DeviceId("g7")), degree=2)


@corruption("is not in the cluster")
def _(_events: list[SimEvent], run: RunEvent) -> SimEvent:
    return changed(run, devices=(DeviceId("g99"),), degree=1)


@corruption("do not fit")
def _(_events: list[SimEvent], run: RunEvent) -> SimEvent:
    return changed(run, activation_bytes=1001)


@corruption("never arrives")
def _(_events: list[SimEvent], run: RunEvent) -> SimEvent:
    return changed(run, requests=(*run.requests, RequestId("nobody")))


@corruption("different requests")
def _(_events: list[SimEvent], run: RunEvent) -> SimEvent:
    return changed(run, requests=run.requests * 2)


@corruption("ends before it starts")
def _(_events: list[SimEvent], run: RunEvent) -> SimEvent:
    return changed(run, end=run.start - 1)


@corruption("does two things at once")
def _(_events: list[SimEvent], run: RunEvent) -> tuple[SimEvent, ...]:
    return (run, changed(run, start=(run.start + run.end) / 2))


@corruption("steps although it is decoded|after its end|has a diffuse")
def _(events: list[SimEvent], run: RunEvent) -> tuple[SimEvent, ...]:
    late = max(e.end for e in events if isinstance(e, RunEvent)) + 1
    again = changed(run, start=late, end=late + 1, stage=StageKind.DIFFUSE, step_from=0, step_to=1)
    return (run, again)


@corruption("finishes without being decoded|before it is encoded|after . of . steps|from step")
def _(_events: list[SimEvent], run: RunEvent) -> SimEvent:
    return changed(run, outcome=RunOutcome.FAILED, step_to=run.step_from)  # and saved nothing


@corruption("from step")
def _(_events: list[SimEvent], run: RunEvent) -> tuple[SimEvent, ...]:
    middle = (run.start + run.end) / 2
    failed = changed(
        run, end=middle, stage=StageKind.DIFFUSE, outcome=RunOutcome.FAILED, step_to=run.step_from
    )
    beyond = {"step_from": failed.step_to + 1, "step_to": failed.step_to + 1}
    return (failed, changed(run, start=middle, stage=StageKind.DIFFUSE, **beyond))


@corruption("before it arrived")
def _(events: list[SimEvent], run: RunEvent) -> SimEvent:
    return changed(run, start=arrival_of(events, run).t - 1, end=arrival_of(events, run).t)


@corruption("runs the stage that|does not hold|two things")
def _(_events: list[SimEvent], run: RunEvent) -> tuple[SimEvent, ...]:
    middle = (run.start + run.end) / 2
    evict = EvictEvent(
        start=middle,
        end=middle,
        device=run.devices[0],
        model=MODEL,
        stage=run.stage,
        bytes=WEIGHT_BYTES[run.stage],
    )
    return (run, evict)


@corruption("do not fit")
def _(_events: list[SimEvent], run: RunEvent) -> tuple[SimEvent, ...]:
    missing = StageKind.DIFFUSE if run.stage is StageKind.ENCODE else StageKind.ENCODE
    load = LoadEvent(
        start=run.start,
        end=run.end,
        device=run.devices[0],
        model=MODEL,
        stage=missing,
        bytes=MEMORY_BYTES,  # loads may go on beside a run, if there is room
    )
    return (run, load)


@corruption("already holds")
def _(_events: list[SimEvent], run: RunEvent) -> tuple[SimEvent, ...]:
    load = LoadEvent(
        start=run.end,
        end=run.end,
        device=run.devices[0],
        model=MODEL,
        stage=StageKind.DECODE,  # every device always holds it
        bytes=1,
    )
    return (run, load)


@corruption("is lost before")
def _(_events: list[SimEvent], run: RunEvent) -> tuple[SimEvent, ...]:
    return (run, DeviceLostEvent((run.start + run.end) / 2, run.devices[0]))


@corruption("is lost when|is lost twice")
def _(_events: list[SimEvent], run: RunEvent) -> tuple[SimEvent, ...]:
    return (DeviceLostEvent(run.start, run.devices[0]), run)


@corruption("never lost")
def _(_events: list[SimEvent], run: RunEvent) -> tuple[SimEvent, ...]:
    return (run, DeviceReadyEvent(0.0, run.devices[0]))


@corruption("ends 2 times")
def _(_events: list[SimEvent], run: RunEvent) -> tuple[SimEvent, ...]:
    return (run, RejectEvent(10_000.0, run.requests[0], "changed its mind"))


@corruption("arrives twice")
def _(events: list[SimEvent], run: RunEvent) -> tuple[SimEvent, ...]:
    return (run, arrival_of(events, run))


@corruption("must be the first")
def _(events: list[SimEvent], run: RunEvent) -> tuple[SimEvent, ...]:
    return (run, events[0])


@given(SEEDS)
def test_a_valid_history_passes(seed: int) -> None:
    assert audit(history(seed)) == []


@pytest.mark.parametrize("words", CORRUPTIONS)
@given(seed=SEEDS, which=st.integers(0, 1000))
def test_a_corrupted_run_is_found(words: str, seed: int, which: int) -> None:
    events = history(seed)
    good = [e for e in events if isinstance(e, RunEvent) and e.outcome is not RunOutcome.FAILED]
    if not good:
        return
    run = good[which % len(good)]
    put = CORRUPTIONS[words](events, run)
    place = events.index(run)
    events[place : place + 1] = list(put) if isinstance(put, tuple) else [put]
    problems = audit(events)
    assert any(re.search(words, problem) for problem in problems), problems


@given(seed=SEEDS, which=st.integers(0, 1000))
def test_a_missing_run_is_found(seed: int, which: int) -> None:
    events = history(seed)
    good = [e for e in events if isinstance(e, RunEvent) and e.outcome is not RunOutcome.FAILED]
    if good:
        events.remove(good[which % len(good)])
        assert audit(events) != []


@given(seed=SEEDS, which=st.integers(0, 1000))
def test_a_missing_load_is_found(seed: int, which: int) -> None:
    events = history(seed)
    loads = [e for e in events if isinstance(e, LoadEvent) and e.stage is StageKind.ENCODE]
    if loads:
        events.remove(loads[which % len(loads)])
        assert any("does not hold" in problem for problem in audit(events))


@given(seed=SEEDS, which=st.integers(0, 1000))
def test_a_missing_eviction_is_found(seed: int, which: int) -> None:
    events = history(seed)
    evictions = [e for e in events if isinstance(e, EvictEvent) and e.stage is StageKind.DIFFUSE]
    if evictions:
        events.remove(evictions[which % len(evictions)])
        assert any("already holds" in problem for problem in audit(events))


@given(seed=SEEDS, which=st.integers(0, 1000))
def test_an_end_that_is_missing_wrong_or_too_early_is_found(seed: int, which: int) -> None:
    events = history(seed)
    ends = [e for e in events if isinstance(e, FinishEvent)]
    if not ends:
        return
    end = ends[which % len(ends)]
    others = [e for e in events if e is not end]
    lie = msgspec.structs.replace(end, on_time=not end.on_time)
    early = msgspec.structs.replace(end, t=0.0)
    nobody = msgspec.structs.replace(end, request=RequestId("nobody"))
    assert any("ends 0 times" in problem for problem in audit(others))
    assert any("before its last run ends" in problem for problem in audit([*others, early]))
    assert any("never arrives" in problem for problem in audit([*others, nobody]))
    due = next(
        e.deadline for e in events if isinstance(e, ArriveEvent) and e.request == end.request
    )
    if abs(due - end.t) > 1e-3:
        assert any("says on_time" in problem for problem in audit([*others, lie]))


def begin() -> list[SimEvent]:
    resident = tuple(ResidentStage(MODEL, kind, 1) for kind in StageKind)
    devices = tuple(ClusterDevice(DeviceId(name), "n", 100, resident) for name in "ab")
    arrival = ArriveEvent(
        t=0.0,
        request=RequestId("r"),
        model=MODEL,
        height=64,
        width=64,
        frames=1,
        steps=4,
        deadline=9.0,
    )
    return [ClusterEvent(devices), arrival]


def run(stage: StageKind, start: float, device: str, **changes: object) -> RunEvent:
    event = RunEvent(
        start=start,
        end=start + 1,
        requests=(RequestId("r"),),
        stage=stage,
        devices=(DeviceId(device),),
        degree=1,
        step_from=0,
        step_to=0,
        activation_bytes=1,
    )
    return changed(event, **changes)


def test_work_may_be_done_again_only_after_its_device_was_lost() -> None:
    story = [
        *begin(),
        run(StageKind.ENCODE, 1.0, "b"),
        run(StageKind.DIFFUSE, 2.0, "a", step_to=3),
        run(StageKind.DIFFUSE, 4.0, "b", step_to=3),
        run(StageKind.DIFFUSE, 5.0, "b", step_from=3, step_to=4),
        run(StageKind.DECODE, 6.0, "b"),
        FinishEvent(7.0, RequestId("r"), on_time=True),
    ]
    assert any("from step 0 after 3 steps" in problem for problem in audit(story))
    assert audit([*story, DeviceLostEvent(3.5, DeviceId("a"))]) == []


def test_a_batch_of_two_models_is_found() -> None:
    cluster, first = begin()
    other = msgspec.structs.replace(first, request=RequestId("s"), model=ModelId("other"))
    both = run(StageKind.ENCODE, 1.0, "a", requests=("r", "s"))
    problems = audit([cluster, first, other, both])
    assert any("mixes the models m, other" in problem for problem in problems)


def test_the_list_of_problems_is_bounded() -> None:
    events: list[SimEvent] = [ClusterEvent(())]
    events += [FinishEvent(0.0, RequestId(f"r{i}"), on_time=True) for i in range(MOST_PROBLEMS + 5)]
    assert len(audit(events)) == MOST_PROBLEMS


def test_an_empty_history_has_nothing_wrong() -> None:
    assert audit([]) == []


@pytest.mark.parametrize(
    ("times", "changes"),
    [(1, {"steps": 8}), (1, {"steps": 1}), (1, {"late_s": -1.0}), (2, {})],
)
def test_a_degradation_without_leave_or_need_is_found(
    times: int, changes: dict[str, float]
) -> None:
    story = [
        *begin(),
        run(StageKind.ENCODE, 1.0, "b"),
        run(StageKind.DIFFUSE, 2.0, "a", step_to=4),
        run(StageKind.DECODE, 6.0, "b"),
        FinishEvent(7.0, RequestId("r"), on_time=True),
    ]
    fair = DegradeEvent(t=0.0, request=RequestId("r"), wished=8, least=2, steps=4, late_s=1.0)
    assert audit([*story, fair]) == []
    wrong = msgspec.structs.replace(fair, **changes)
    assert any("is degraded from 8" in problem for problem in audit([*story, *(times * [wrong])]))
