"""Loading beside what runs: the next task finds its stage there, and memory is never overrun."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from engine.messages import StageReport
from engine.types import (
    Assignment,
    ClusterView,
    DeviceId,
    DispatchPlan,
    PlanId,
    Prefetch,
    StageKey,
    StageKind,
    StageTask,
)
from schedulers.sim.clock import run_virtual
from tests.support.builders import MIB, MODEL, a_request, devices
from tests.support.engines import SimulatedEngine, simulated_engine

DEVICE = DeviceId("fake:0")
LOAD_S = 3.0


class Prefetching:
    """Runs one task after another on the only device, and asks for one prefetch in the encode."""

    def __init__(self, stage: StageKey | None) -> None:
        self.wanted = stage

    def plan(self, ready: Sequence[StageTask], view: ClusterView) -> DispatchPlan:
        idle = bool(view.devices) and view.devices[0].busy_until_s is None
        launches = [
            Assignment(task=task, team=(DEVICE,), expected_s=1.0, activation_bytes=MIB, why="")
            for task in ready[:1]
            if idle
        ]
        wanted = []
        if self.wanted is not None and view.running:
            wanted, self.wanted = [Prefetch(DEVICE, self.wanted)], None
        return DispatchPlan(
            id=PlanId(1),
            assignments=tuple(launches),
            prefetches=tuple(wanted),
            next_decision_at_s=view.now_s + 0.1 if self.wanted is not None else None,
        )

    def why_impossible(self, task: StageTask, view: ClusterView) -> str | None:
        del task, view
        return None

    def observe(self, assignment: Assignment, report: StageReport) -> None:
        del assignment, report


def engine_with(stage: StageKey | None, memory_bytes: int) -> SimulatedEngine:
    sim = simulated_engine(devices(1, memory_bytes), load_s=lambda _stage: LOAD_S)
    sim.core._dispatcher = Prefetching(stage)
    sim.core._planner.place = lambda *_args: None  # type: ignore[method-assign]
    return sim


def measured(stage: StageKey | None, memory_bytes: int = 1024 * MIB) -> float:
    async def scenario() -> float:
        sim = engine_with(stage, memory_bytes)
        await sim.core.start()
        await sim.core.generate(a_request())
        await asyncio.sleep(0)
        sim.core.check_integrity()
        await sim.core.close()
        return asyncio.get_running_loop().time()

    return run_virtual(scenario())


DIFFUSE = StageKey(MODEL, StageKind.DIFFUSE)
SUM_S = 3 * LOAD_S + 1 + 10 + 2


def test_a_prefetch_takes_a_load_off_the_critical_path() -> None:
    assert measured(None) == pytest.approx(SUM_S)
    # begun .1 s after the encode's own load, so it ends beside it
    assert measured(DIFFUSE) == pytest.approx(SUM_S - LOAD_S + 0.1, abs=1.0)
    assert measured(DIFFUSE) < measured(None) - 1.0


def test_a_prefetch_that_does_not_fit_beside_what_runs_is_not_made() -> None:
    assert measured(DIFFUSE, 130 * MIB) == pytest.approx(SUM_S)


def test_a_device_lost_during_a_prefetch_costs_only_a_retry() -> None:
    async def scenario() -> None:
        sim = engine_with(DIFFUSE, 1024 * MIB)
        await sim.core.start()
        work = asyncio.create_task(sim.core.generate(a_request()))
        await asyncio.sleep(1.0)
        sim.executor.kill(DEVICE)
        await work
        sim.core.check_integrity()
        await sim.core.close()

    run_virtual(scenario())
