"""Whole simulations: deterministic, complete, and by the code that the server runs."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from engine.types import ModelId
from schedulers.errors import SchedulerError
from schedulers.sim.audit import audit
from schedulers.sim.config import NodeFailure, RunFacts, SimConfig
from schedulers.sim.events import (
    ArriveEvent,
    DecideEvent,
    DegradeEvent,
    DeviceLostEvent,
    FinishEvent,
    LoadEvent,
    PlaceEvent,
    RejectEvent,
    RunEvent,
    RunOutcome,
    SimEvent,
)
from schedulers.sim.run import simulate
from schedulers.sim.traces import TraceRow

COG = ModelId("cogvideox1.5-5b")
SIZES = [(768, 432, 17), (768, 432, 81), (768, 1360, 17), (768, 1360, 81)]


def rows(count: int, every_s: float) -> Iterator[TraceRow]:
    for i in range(count):
        height, width, frames = SIZES[i % len(SIZES)]
        yield TraceRow(arrival_s=i * every_s, height=height, width=width, frames=frames, steps=6)


def run(trace: Iterator[TraceRow], **changes: object) -> tuple[list[SimEvent], RunFacts]:
    values = {"profile": "l20", "models": (COG,), "gpus": 16, "policy": "trident", "rows": trace}
    events: list[SimEvent] = []
    return events, simulate(SimConfig(**(values | changes)), on_event=events.append)


def overload(count: int = 100) -> Iterator[TraceRow]:
    """More of one size than 16 devices can do in time with all steps."""
    for i in range(count):
        yield TraceRow(arrival_s=2.0 * i, height=768, width=432, frames=81, steps=6)


def on_time(events: list[SimEvent]) -> int:
    return sum(event.on_time for event in events if isinstance(event, FinishEvent))


def finishes(events: list[SimEvent]) -> list[float]:
    return [event.t for event in events if isinstance(event, FinishEvent)]


def test_the_same_seed_gives_the_same_times_although_ids_are_random() -> None:
    first, _facts = run(rows(30, 5.0), noise=0.2, seed=3)
    second, _facts = run(rows(30, 5.0), noise=0.2, seed=3)
    assert finishes(first) == finishes(second)
    assert {e.request for e in first if isinstance(e, ArriveEvent)}.isdisjoint(
        e.request for e in second if isinstance(e, ArriveEvent)
    )


def test_another_seed_of_the_noise_gives_other_times() -> None:
    assert finishes(run(rows(10, 5.0), noise=0.2, seed=3)[0]) != finishes(
        run(rows(10, 5.0), noise=0.2, seed=4)[0]
    )


def test_every_request_ends_once_under_overload_and_after_a_node_has_failed() -> None:
    failure = NodeFailure(0, 40.0)
    events, _facts = run(rows(40, 2.0), failures=(failure,), gpus=24)
    arrived = [e.request for e in events if isinstance(e, ArriveEvent)]
    ended = [e.request for e in events if isinstance(e, FinishEvent | RejectEvent)]
    assert sorted(arrived) == sorted(ended)
    assert any(e.outcome is RunOutcome.FAILED for e in events if isinstance(e, RunEvent))
    assert not [e for e in events if isinstance(e, RejectEvent)]


def test_a_gpu_that_fails_takes_its_team_down_and_costs_no_request() -> None:
    failures = (NodeFailure(0, 20.0, 3), NodeFailure(0, 60.0))  # then the rest of its node
    events, _facts = run(rows(24, 2.0), failures=failures)
    assert audit(events) == []
    lost = [e.device for e in events if isinstance(e, DeviceLostEvent)]
    assert lost[0] == "n0g3"
    assert sorted(lost) == [f"n0g{n}" for n in range(8)]
    assert any(e.outcome is RunOutcome.FAILED for e in events if isinstance(e, RunEvent))
    assert len(finishes(events)) == 24


@pytest.mark.parametrize("gpus", [1, 2, 3])
def test_a_small_cluster_begins_with_its_placement_loaded(gpus: int) -> None:
    models = (ModelId("sd3"), COG) if gpus > 1 else (ModelId("sd3"),)
    row = TraceRow(arrival_s=5.0, height=512, width=512, frames=1, steps=20)
    row = msgspec.structs.replace(row, model=models[0])
    events, facts = run(iter([row]), models=models, gpus=gpus)
    assert audit(events) == []
    assert not [e for e in events if isinstance(e, LoadEvent)]
    assert facts.simulated_s < 5.0 + 20 * 0.1


def test_a_request_that_fits_at_no_degree_is_refused_with_the_reason() -> None:
    row = TraceRow(arrival_s=0.0, height=768, width=1360, frames=81, steps=6)
    events, _facts = run(iter([row]), gpus=4)
    (refusal,) = [e for e in events if isinstance(e, RejectEvent)]
    assert "each of 8 devices of one node" in refusal.reason


def test_an_unknown_policy_is_named_with_those_that_exist() -> None:
    with pytest.raises(SchedulerError, match=r"no policy 'magic'; known: trident"):
        run(rows(1, 1.0), policy="magic")


def test_an_unknown_switch_is_named() -> None:
    with pytest.raises(SchedulerError, match="no switch 'telepathy'"):
        run(rows(1, 1.0), switches={"telepathy": True})


@pytest.mark.parametrize(
    ("switch", "why"),
    [
        ({"preempt": 7}, "Expected `bool`"),
        ({"batch": 0}, "batch is too small"),
        ({"weights": {"a": 0.0}}, "weights.a is too small"),
    ],
)
def test_a_switch_with_a_wrong_value_is_refused(switch: dict[str, object], why: str) -> None:
    with pytest.raises(SchedulerError, match=why):
        run(rows(1, 1.0), switches=switch)


def test_a_heavier_tenant_is_served_sooner_when_all_queue() -> None:
    def trace() -> Iterator[TraceRow]:
        for i in range(60):
            row = TraceRow(arrival_s=float(i), height=768, width=432, frames=81, steps=6)
            yield msgspec.structs.replace(row, tenant="ab"[i % 2], slo_scale=100.0)

    means = []
    for weights in ({"a": 4.0}, {"b": 4.0}):
        events, _facts = run(trace(), gpus=8, switches={"weights": weights, "scale_up": False})
        arrived = {e.request: e for e in events if isinstance(e, ArriveEvent)}
        spent = [
            e.t - arrived[e.request].t
            for e in events
            if isinstance(e, FinishEvent) and arrived[e.request].tenant == "a"
        ]
        means.append(sum(spent) / len(spent))
    assert means[0] < 0.8 * means[1]


def test_a_simulation_says_why_every_launch_is_where_it_is_and_what_devices_should_hold() -> None:
    events, _facts = run(rows(20, 2.0))
    decided = {
        (event.request, event.stage, event.devices): event.why
        for event in events
        if isinstance(event, DecideEvent)
    }
    runs = [event for event in events if isinstance(event, RunEvent)]
    assert len(runs) >= 60
    for ran in runs:
        for request in ran.requests:
            assert decided[request, ran.stage, ran.devices]
    first = events[1]
    assert isinstance(first, PlaceEvent)
    assert len(first.stages) == 16
    assert set.union(*map(set, first.stages.values())) == {
        f"{COG}/{stage}" for stage in ("encode", "diffuse", "decode")
    }


def test_under_overload_admission_degrades_no_further_than_is_allowed_and_more_is_on_time() -> None:
    usual, _facts = run(overload())
    events, _facts = run(overload(), degrade=True, min_steps_share=0.5)
    assert audit(events) == []
    degraded = [event for event in events if isinstance(event, DegradeEvent)]
    arrived = {event.request: event for event in events if isinstance(event, ArriveEvent)}
    assert degraded
    assert all(3 <= event.steps < event.wished == 6 for event in degraded)
    assert all(arrived[event.request].steps == event.steps for event in degraded)
    assert on_time(events) > 1.3 * on_time(usual)


def test_without_leave_nothing_is_degraded() -> None:
    usual, _facts = run(overload(30))
    strict, _facts = run(overload(30), degrade=True)
    assert finishes(strict) == finishes(usual)
    assert not [event for event in strict if isinstance(event, DegradeEvent)]


def test_a_row_says_itself_how_few_steps_it_allows() -> None:
    patient = (msgspec.structs.replace(row, min_steps=5) for row in overload())
    events, _facts = run(patient, degrade=True, min_steps_share=0.1)
    assert {event.steps for event in events if isinstance(event, DegradeEvent)} == {5}


def test_an_idle_cluster_degrades_nothing() -> None:
    events, _facts = run(rows(5, 200.0), degrade=True, min_steps_share=0.1)
    assert not [event for event in events if isinstance(event, DegradeEvent)]
