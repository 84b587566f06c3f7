"""Random placements while requests run: nothing is lost, no device holds more than it has.

Loads take longer than most placements last, so that switches are superseded half-way.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.types import (
    ClusterView,
    DeviceId,
    DeviceInfo,
    GenerationResult,
    ModelId,
    Placement,
    StageKey,
    StageKind,
)
from observability.snapshot import MonitorSnapshot
from schedulers.sim.clock import run_virtual
from tests.support.builders import MIB, a_request, a_spec, devices
from tests.support.engines import SimulatedEngine, simulated_engine

SPECS = [a_spec("a"), a_spec("b")]
STAGES = [spec.stage(kind) for spec in SPECS for kind in StageKind]
INFOS = devices(3, memory_bytes=330 * MIB)  # three stages of 100 MiB, or two and activations
LOAD_S = 7.0


@dataclass(frozen=True)
class Switch:
    """At what time which placement is wanted."""

    at_s: float
    stages: dict[DeviceId, frozenset[StageKey]]


@st.composite
def switches(draw: st.DrawFn) -> list[Switch]:
    """Placements that all cover every stage, at times that rise from zero."""
    made, at_s = [], 0.0
    for _ in range(draw(st.integers(1, 6))):
        stages: dict[DeviceId, set[StageKey]] = {info.id: set() for info in INFOS}
        for stage in STAGES:
            for device in draw(st.sets(st.sampled_from(INFOS), min_size=1, max_size=2)):
                stages[device.id].add(stage)
        made.append(Switch(at_s, {device: frozenset(held) for device, held in stages.items()}))
        at_s += draw(st.sampled_from([0.5, 3.0, 6.5, 11.0, 40.0]))
    return made


class Scripted:
    """Wants what the script says."""

    def __init__(self, script: list[Switch]) -> None:
        self._script = list(enumerate(script, start=1))

    def place(self, view: ClusterView, snapshot: MonitorSnapshot | None) -> Placement | None:
        del snapshot
        due = [entry for entry in self._script if entry[1].at_s <= view.now_s]
        if not due:
            return None
        self._script = [entry for entry in self._script if entry not in due]
        version, switch = due[-1]
        return Placement(version, switch.stages)


def audit(sim: SimulatedEngine) -> None:
    """Ledgers and graphs are whole, and weights lie only where memory was promised to them."""
    sim.core.check_integrity()
    for device, held in sim.executor._resident.items():
        memory = sim.core.cluster.memories[device]
        assert held <= memory.weights.keys()
        assert memory.loaded <= held
        assert 100 * MIB * len(memory.weights) <= memory.info.memory_bytes


async def keep_auditing(sim: SimulatedEngine) -> None:
    while True:
        sim.core._wake.set()
        await asyncio.sleep(0.25)
        audit(sim)


def engine(script: list[Switch], infos: list[DeviceInfo] = INFOS) -> SimulatedEngine:
    sim = simulated_engine(infos, specs=SPECS, load_s=lambda _stage: LOAD_S)
    sim.core._planner = Scripted(script)
    return sim


async def run(
    script: list[Switch], arrivals: list[tuple[float, str]], cancelled: frozenset[int]
) -> list[GenerationResult | BaseException]:
    sim = engine(script)
    await sim.core.start()
    auditing = asyncio.create_task(keep_auditing(sim))

    async def one(index: int, at_s: float, model: str) -> GenerationResult:
        await asyncio.sleep(at_s)
        work = asyncio.create_task(
            sim.core.generate(a_request(f"r{index}", model=ModelId(model), n=1 + index % 2))
        )
        if index in cancelled:
            await asyncio.sleep(2.0)
            work.cancel()
        return await work

    outcomes = await asyncio.gather(
        *(one(index, *arrival) for index, arrival in enumerate(arrivals)), return_exceptions=True
    )
    while sim.core.cluster.teams.busy:
        await asyncio.sleep(0.25)
    assert not auditing.done()
    auditing.cancel()
    audit(sim)
    assert sim.executor.alive == {}
    await sim.core.close()
    return outcomes


@settings(max_examples=40, deadline=None)
@given(
    switches(),
    st.lists(st.tuples(st.floats(0, 60), st.sampled_from("ab")), min_size=1, max_size=8),
    st.frozensets(st.integers(0, 7), max_size=2),
)
def test_requests_outlive_any_sequence_of_placements_and_memory_is_never_overrun(
    script: list[Switch], arrivals: list[tuple[float, str]], cancelled: frozenset[int]
) -> None:
    outcomes = run_virtual(run(script, arrivals, cancelled))
    for index, outcome in enumerate(outcomes):
        allowed = GenerationResult if index not in cancelled else (
            GenerationResult, asyncio.CancelledError,
        )  # fmt: skip
        assert isinstance(outcome, allowed), (index, outcome)
