"""Consecutive stages of a request on one device as one launch, and what ends such a launch early."""

from __future__ import annotations

import asyncio

import pytest

from engine.types import DeviceId, GenerationResult, Placement, StageKey, StageKind
from schedulers.sim.clock import run_virtual
from tests.support.builders import MODEL, a_request, devices
from tests.support.engines import SimulatedEngine, simulated_engine

DEVICE = DeviceId("fake:0")
ALL = frozenset(StageKey(MODEL, kind) for kind in StageKind)


def engine(count: int = 1) -> SimulatedEngine:
    infos = devices(count)
    sim = simulated_engine(infos)
    wanted = [Placement(1, {info.id: ALL for info in infos})]
    sim.core._planner.place = lambda *_args: wanted.pop() if wanted else None  # type: ignore[method-assign]
    return sim


def count_plans(sim: SimulatedEngine) -> list[int]:
    """Return a list that grows by the number of launches of every plan."""
    launches, plan = [], sim.core._dispatcher.plan

    def counted(ready, view):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        made = plan(ready, view)
        launches.append(len(made.assignments))
        return made

    sim.core._dispatcher.plan = counted  # type: ignore[method-assign]
    return launches


async def started(sim: SimulatedEngine) -> None:
    await sim.core.start()
    await asyncio.sleep(1.0)  # weights are there


def test_one_launch_runs_all_stages_and_each_has_its_own_place_in_the_timeline() -> None:
    async def scenario() -> tuple[GenerationResult, int, int]:
        sim = engine()
        await started(sim)
        launches = count_plans(sim)
        result = await sim.core.generate(a_request())
        await asyncio.sleep(0)
        sim.core.check_integrity()
        assert sim.executor.alive == {}
        assert not sim.core.cluster.teams.busy
        await sim.core.close()
        return result, sum(launches), len(sim.spans.get_finished_spans())

    result, launches, spans = run_virtual(scenario())
    assert launches == 1
    assert spans == 3
    assert [(t.stage, t.run_s, t.queue_wait_s) for t in result.timeline] == [
        (StageKind.ENCODE, 1.0, 0.0),
        (StageKind.DIFFUSE, 10.0, 0.0),
        (StageKind.DECODE, 2.0, 0.0),
    ]


def test_further_outputs_of_a_request_follow_as_launches_of_their_own() -> None:
    async def scenario() -> tuple[GenerationResult, int]:
        sim = engine()
        await started(sim)
        launches = count_plans(sim)
        result = await sim.core.generate(a_request(n=3))
        await sim.core.close()
        return result, sum(launches)

    result, launches = run_virtual(scenario())
    assert [artifact.index for artifact in result.artifacts] == [0, 1, 2]
    assert launches == 3  # encode and the first output; then two outputs


@pytest.mark.parametrize("at_s", [0.5, 5.0, 12.0])
def test_a_device_lost_in_any_stage_costs_that_stage_alone(at_s: float) -> None:
    async def scenario() -> tuple[list[int], int]:
        sim = engine()
        await started(sim)
        work = asyncio.create_task(sim.core.generate(a_request()))
        await asyncio.sleep(at_s)
        sim.executor.kill(DEVICE)
        result = await work
        await asyncio.sleep(0)
        sim.core.check_integrity()
        assert sim.executor.alive == {}
        assert sim.executor._made == {}
        await sim.core.close()
        return [timing.attempt for timing in result.timeline], len(result.artifacts)

    attempts, artifacts = run_virtual(scenario())
    failed = [0.5, 5.0, 12.0].index(at_s)
    assert attempts == [2 if stage == failed else 1 for stage in range(3)]
    assert artifacts == 1


@pytest.mark.parametrize("at_s", [0.5, 5.0, 12.0])
def test_a_cancelled_request_ends_the_whole_launch(at_s: float) -> None:
    async def scenario() -> None:
        sim = engine()
        await started(sim)
        work = asyncio.create_task(sim.core.generate(a_request()))
        await asyncio.sleep(at_s)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        await asyncio.sleep(0.1)
        assert not sim.core.cluster.teams.busy
        assert sim.executor.alive == {}
        sim.core.check_integrity()
        await sim.core.close()

    run_virtual(scenario())


def test_a_paused_diffuse_ends_its_launch_and_its_decode_comes_later() -> None:
    async def scenario() -> list[StageKind]:
        sim = engine()
        await started(sim)
        work = asyncio.create_task(sim.core.generate(a_request()))
        await asyncio.sleep(4.0)
        [running] = sim.core._launcher.running()
        sim.core._launcher._stop_at_boundary(running.assignment.task.id)
        result = await work
        sim.core.check_integrity()
        assert sim.executor.alive == {}
        await sim.core.close()
        return [timing.stage for timing in result.timeline]

    stages = run_virtual(scenario())
    assert stages == [StageKind.ENCODE, StageKind.DIFFUSE, StageKind.DIFFUSE, StageKind.DECODE]
