"""The starvation bound: however many narrower requests come, a late wide one ends in bounded time."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.types import ModelId
from schedulers.sim.audit import audit
from schedulers.sim.config import SimConfig
from schedulers.sim.events import ArriveEvent, FinishEvent, SimEvent
from schedulers.sim.run import simulate
from schedulers.sim.traces import TraceRow

COG = ModelId("cogvideox1.5-5b")
STREAM_S = 200.0
NARROW_S, NARROW_DECODE_S = 6 * 1.19, 1.0  # one on one device
WIDE_S = 6 * 4.75 + 10.2  # the wide one on a whole node, and its reference latency
AGE = 1.0


def rows(nodes: int, load: float, seed: int) -> Iterator[TraceRow]:
    """A wide request that is late from the start, and a stream that asks for `load` of all devices."""
    rng = random.Random(seed)
    rate_rps = load * 8 * nodes / (NARROW_S + NARROW_DECODE_S)
    now_s, came = 0.0, False
    while now_s < STREAM_S:
        if not came and now_s > 15.0:
            came = True
            yield TraceRow(
                arrival_s=now_s, height=768, width=1360, frames=81, steps=6, slo_scale=0.1
            )
        yield TraceRow(arrival_s=now_s, height=768, width=432, frames=17, steps=6, slo_scale=6.0)
        now_s += rng.expovariate(rate_rps)


def waited_s(nodes: int, load: float, seed: int, solver: str, elders: int) -> float:
    """Return how long the wide request took."""
    events: list[SimEvent] = []
    config = SimConfig(
        profile="l20",
        models=(COG,),
        gpus=8 * nodes,
        policy="trident",
        rows=rows(nodes, load, seed),
        dispatcher=solver,
        switches={"elders_per_16_nodes": elders, "elder_age": AGE},
    )
    simulate(config, on_event=events.append)
    assert audit(events) == []
    [wide] = [e for e in events if isinstance(e, ArriveEvent) and e.frames == 81]
    [end] = [e for e in events if isinstance(e, FinishEvent) and e.request == wide.request]
    return end.t - wide.t


@settings(max_examples=8, deadline=None)
@given(
    st.integers(1, 2), st.floats(0.8, 1.2), st.integers(0, 99), st.sampled_from(("greedy", "ilp"))
)
def test_with_the_bound_on_a_wide_late_request_ends_although_narrow_ones_never_cease(
    nodes: int, load: float, seed: int, solver: str
) -> None:
    drained_s = NARROW_S + NARROW_DECODE_S  # what runs on the node that is kept for it
    assert waited_s(nodes, load, seed, solver, 16) <= AGE * WIDE_S + drained_s + WIDE_S + 2.0


@pytest.mark.parametrize("solver", ["greedy", "ilp"])
def test_without_it_the_same_request_waits_for_the_end_of_the_stream(solver: str) -> None:
    assert waited_s(1, 1.1, 0, solver, 0) > STREAM_S - 15.0
