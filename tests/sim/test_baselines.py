"""Every baseline in whole simulations: nothing is lost, nothing done twice, teams stay together."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import pairwise

import msgspec
import pytest

from engine.types import DeviceId, RequestId, StageKind
from schedulers.baselines.catalogue import PIPELINE_LEVEL, STAGE_LEVEL
from schedulers.planner.handsized import HandSizes
from schedulers.sim.audit import audit
from schedulers.sim.config import NodeFailure, SimConfig
from schedulers.sim.events import ArriveEvent, FinishEvent, RejectEvent, RunEvent, SimEvent
from schedulers.sim.mixes import COG, FLUX, HUNYUAN, MIXES, SD3
from schedulers.sim.run import simulate
from schedulers.sim.traces import TraceRow, mix_of

STAGEWISE = (*STAGE_LEVEL, "trident-paper")
ALL = (*PIPELINE_LEVEL, *STAGEWISE)
EVERY_S = {COG: 4.0, HUNYUAN: 8.0, FLUX: 2.0, SD3: 0.25}
DYNAMIC = tuple(name for name in ALL if not name.startswith("b1-") or name == "b1-sp8")


def rows(model: str, count: int, seed: int = 1) -> list[TraceRow]:
    rng, at_s = random.Random(seed), 0.0
    mix = MIXES[model]
    made = []
    for _ in range(count):
        at_s += rng.expovariate(1 / EVERY_S[model])
        size = rng.choice(mix.sizes)
        made.append(
            TraceRow(
                arrival_s=at_s,
                height=size.height,
                width=size.width,
                frames=size.frames,
                steps=mix.steps,
                model=model,
            )
        )
    return made


def run(policy: str, model: str, trace: Iterable[TraceRow], **changes: object) -> list[SimEvent]:
    values = {"profile": "l20", "models": (model,), "gpus": 32, "policy": policy, "rows": trace}
    events: list[SimEvent] = []
    simulate(SimConfig(**(values | changes)), on_event=events.append)
    return events


def arrived(events: list[SimEvent]) -> list[RequestId]:
    return sorted(event.request for event in events if isinstance(event, ArriveEvent))


def ended(events: list[SimEvent]) -> list[RequestId]:
    return sorted(event.request for event in events if isinstance(event, FinishEvent | RejectEvent))


@pytest.mark.parametrize("model", [COG, HUNYUAN, FLUX, SD3])
@pytest.mark.parametrize("policy", ALL)
def test_every_request_ends_once_and_the_history_is_sound(policy: str, model: str) -> None:
    events = run(policy, model, rows(model, 25))
    assert ended(events) == arrived(events)
    assert audit(events) == []
    if policy in DYNAMIC:
        assert not [event for event in events if isinstance(event, RejectEvent)]


@pytest.mark.parametrize("policy", STAGEWISE)
@pytest.mark.parametrize(
    "sizes", [HandSizes(), HandSizes(decode=3, encode=1), HandSizes(decode=3, spill=False)]
)
def test_stage_level_baselines_work_with_and_without_pools(policy: str, sizes: HandSizes) -> None:
    events = run(policy, COG, rows(COG, 25), sizes=sizes)
    assert ended(events) == arrived(events)
    assert audit(events) == []


@pytest.mark.parametrize("policy", DYNAMIC)
def test_a_node_that_dies_costs_no_request(policy: str) -> None:
    events = run(policy, COG, rows(COG, 20), failures=(NodeFailure(1, 30.0),))
    assert ended(events) == arrived(events)
    assert audit(events) == []
    assert not [event for event in events if isinstance(event, RejectEvent)]


@pytest.mark.parametrize("policy", PIPELINE_LEVEL)
def test_all_stages_of_a_request_run_on_one_team_that_nobody_else_uses_meanwhile(
    policy: str,
) -> None:
    runs = [e for e in run(policy, COG, rows(COG, 30)) if isinstance(e, RunEvent)]
    team_of: dict[str, tuple[DeviceId, ...]] = {}
    spans: dict[DeviceId, list[tuple[float, float, str]]] = {}
    for event in runs:
        [request] = event.requests
        assert team_of.setdefault(request, event.devices) == event.devices
    for request, team in team_of.items():
        mine = [event for event in runs if request in event.requests]
        assert [event.stage for event in mine] == list(StageKind)
        start, end = mine[0].start, mine[-1].end
        for device in team:
            spans.setdefault(device, []).append((start, end, request))
    for held in spans.values():
        held.sort()
        assert all(before[1] <= after[0] for before, after in pairwise(held))


def test_decisions_do_not_depend_on_the_random_ids_of_requests() -> None:
    for policy in ALL:
        first, second = (run(policy, COG, rows(COG, 20)) for _ in range(2))
        times = [[e.t for e in events if isinstance(e, FinishEvent)] for events in (first, second)]
        assert times[0] == times[1], policy


@pytest.mark.parametrize("policy", ["b2", "b5"])
def test_buckets_are_cut_for_what_the_trace_asks_for_and_leave_no_device_idle(policy: str) -> None:
    """The profile has sizes of 4 and 8 devices, too; teams for those would never get a request."""
    trace = [msgspec.structs.replace(row, arrival_s=0.0) for row in rows(FLUX, 200)]
    events = run(policy, FLUX, trace, mix=mix_of(trace))
    used = {device for e in events if isinstance(e, RunEvent) for device in e.devices}
    assert len(used) == 32
