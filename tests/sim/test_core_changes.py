"""The real core loop when a policy pauses, resizes and batches: nothing is lost or done twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from engine.errors import WorkerLostError
from engine.messages import StageReport
from engine.types import (
    Assignment,
    ClusterView,
    DeviceId,
    DispatchPlan,
    Pause,
    PlanId,
    Resize,
    StageKey,
    StageKind,
    StageTask,
)
from schedulers.sim.clock import run_virtual
from tests.support.builders import a_request, devices
from tests.support.engines import SimulatedEngine, finish, simulated_engine

Change = Callable[[ClusterView], DispatchPlan | None]


class Scripted:
    """Gives each task the first idle device, and once at `at_s` whatever `change` answers."""

    def __init__(self, at_s: float, change: Change) -> None:
        self.at_s, self.change, self.done, self.batch = at_s, change, False, False

    def plan(self, ready: Sequence[StageTask], view: ClusterView) -> DispatchPlan:
        if not self.done and view.now_s >= self.at_s:
            self.done = True
            if (plan := self.change(view)) is not None:
                return plan
        idle = [d.info.id for d in view.devices if d.busy_until_s is None]
        if self.batch and len(ready) > 1:
            launches = [launch(ready[0], idle[:1], riders=tuple(ready[1:]))] if idle else []
        else:
            launches = [launch(t, (d,)) for t, d in zip(ready, idle, strict=False)]
        at_s = self.at_s if view.now_s < self.at_s else None
        return DispatchPlan(id=PlanId(1), assignments=tuple(launches), next_decision_at_s=at_s)

    def why_impossible(self, task: StageTask, view: ClusterView) -> str | None:
        del task, view
        return None

    def observe(self, assignment: Assignment, report: StageReport) -> None:
        del assignment, report


def launch(
    task: StageTask, team: Sequence[DeviceId], riders: tuple[StageTask, ...] = ()
) -> Assignment:
    return Assignment(
        task=task, team=tuple(team), expected_s=1.0, activation_bytes=10, why="", riders=riders
    )


def diffusing(view: ClusterView) -> Assignment:
    (found,) = (
        r.assignment for r in view.running if r.assignment.task.stage.kind is StageKind.DIFFUSE
    )
    return found


def scripted(at_s: float, change: Change, *, count: int = 1) -> SimulatedEngine:
    """A diffuse of 4 steps takes 10 s on one device; each further device halves what is left."""
    sim = simulated_engine(
        devices(count),
        duration_s=lambda task: 2.5 * task.steps_left if task.steps_left else 1.0,
    )
    single_s = sim.executor._duration_s
    sim.executor._duration_s = lambda launch: single_s(launch) / launch.degree
    dispatcher = Scripted(at_s, change)
    sim.core._dispatcher = dispatcher
    sim.core._planner.place = lambda *_args: None  # type: ignore[method-assign]
    return sim


def now() -> float:
    return asyncio.get_running_loop().time()


def launched(sim: SimulatedEngine) -> list[tuple[str, float]]:
    return [(task, start) for task, _device, start in sim.executor.launches]


def test_a_paused_diffuse_stops_at_its_next_boundary_and_goes_on_where_it_was() -> None:
    def change(view: ClusterView) -> DispatchPlan:
        return DispatchPlan(id=PlanId(9), pauses=(Pause(diffusing(view).task.id, "test"),))

    async def scenario() -> tuple[float, list[tuple[str, float]]]:
        sim = scripted(2.0, change)
        await finish(sim, a_request())
        return now(), launched(sim)

    end_s, launches = run_virtual(scenario())
    assert launches == [
        ("r1/encode/1", 0.0),
        ("r1/diffuse-0/1", 1.0),
        ("r1/diffuse-0/2", 3.5),  # the boundary after 2.0
        ("r1/decode-0/1", 11.0),
    ]
    assert end_s == pytest.approx(12.0)


def test_a_resized_diffuse_goes_on_with_its_new_team_at_the_boundary() -> None:
    def change(view: ClusterView) -> DispatchPlan:
        running = diffusing(view)
        onward = launch(running.task, [*running.team, DeviceId("fake:1")])
        return DispatchPlan(id=PlanId(9), resizes=(Resize(running.task.id, onward),))

    async def scenario() -> tuple[float, frozenset[DeviceId]]:
        sim = scripted(2.0, change, count=2)
        await sim.core.start()
        work = asyncio.create_task(sim.core.generate(a_request()))
        await asyncio.sleep(2.5)
        taken = sim.core.cluster.teams.busy  # the second device is held from now on
        await work
        await asyncio.sleep(0)
        sim.core.check_integrity()
        assert sim.core.cluster.teams.busy == frozenset()
        assert sim.executor.alive == {}
        await sim.core.close()
        return now(), taken

    end_s, taken = run_virtual(scenario())
    assert taken == {DeviceId("fake:0"), DeviceId("fake:1")}
    assert end_s == pytest.approx(3.5 + 3 * 2.5 / 2 + 1)


def test_a_device_lost_after_a_resize_costs_only_the_steps_since_the_boundary() -> None:
    def change(view: ClusterView) -> DispatchPlan:
        running = diffusing(view)
        onward = launch(running.task, [*running.team, DeviceId("fake:1")])
        return DispatchPlan(id=PlanId(9), resizes=(Resize(running.task.id, onward),))

    async def scenario() -> float:
        sim = scripted(2.0, change, count=2)
        await sim.core.start()
        work = asyncio.create_task(sim.core.generate(a_request()))
        await asyncio.sleep(4.0)  # half a second into the second part
        sim.executor.kill(DeviceId("fake:1"), for_good=True)
        await work
        await sim.core.close()
        return now()

    # one step was done at the boundary of 3.5; the other three begin again at 4.0 on one device
    assert run_virtual(scenario()) == pytest.approx(4.0 + 3 * 2.5 + 1)


def test_a_pause_that_comes_after_the_last_boundary_changes_nothing() -> None:
    def change(view: ClusterView) -> DispatchPlan:
        return DispatchPlan(id=PlanId(9), pauses=(Pause(diffusing(view).task.id, "too late"),))

    async def scenario() -> float:
        sim = scripted(9.0, change)
        await finish(sim, a_request())
        return now()

    assert run_virtual(scenario()) == pytest.approx(12.0)


def test_cancelling_a_paused_request_frees_its_latent() -> None:
    def change(view: ClusterView) -> DispatchPlan:
        return DispatchPlan(id=PlanId(9), pauses=(Pause(diffusing(view).task.id, "test"),))

    async def scenario() -> None:
        sim = scripted(2.0, change)
        await sim.core.start()
        work = asyncio.create_task(sim.core.generate(a_request()))
        await asyncio.sleep(4.0)
        work.cancel()
        await asyncio.sleep(0.1)
        assert sim.executor.alive == {}
        assert sim.core.cluster.teams.busy == frozenset()
        await sim.core.close()

    run_virtual(scenario())


def test_a_batch_is_one_launch_and_each_rider_gets_its_own_output() -> None:
    async def scenario() -> tuple[list[str], float]:
        sim = scripted(99.0, lambda _view: None)
        assert isinstance(sim.core._dispatcher, Scripted)
        sim.core._dispatcher.batch = True
        await finish(sim, a_request("a"), a_request("b"))
        return [task for task, _start in launched(sim)], now()

    assert run_virtual(scenario()) == (["a/encode/1", "a/diffuse-0/1", "a/decode-0/1"], 12.0)


def test_cancelling_one_rider_leaves_the_others_running() -> None:
    async def scenario() -> float:
        sim = scripted(99.0, lambda _view: None)
        assert isinstance(sim.core._dispatcher, Scripted)
        sim.core._dispatcher.batch = True
        await sim.core.start()
        first, second = (asyncio.create_task(sim.core.generate(a_request(n))) for n in "ab")
        await asyncio.sleep(5)
        first.cancel()
        await second
        await asyncio.sleep(0)
        assert sim.executor.alive == {}
        await sim.core.close()
        return now()

    assert run_virtual(scenario()) == pytest.approx(12.0)


def test_a_rider_that_is_cancelled_while_weights_load_is_dropped_once_its_worker_knows_it() -> None:
    async def scenario() -> list[str]:
        sim, said = scripted(99.0, lambda _view: None), list[str]()
        assert isinstance(sim.core._dispatcher, Scripted)
        sim.core._dispatcher.batch = True
        load, run = sim.executor.load, sim.executor.run

        async def slow(device: DeviceId, stage: StageKey) -> float:
            await asyncio.sleep(3)
            return await load(device, stage)

        async def told(launch: Assignment) -> tuple[StageReport, ...]:
            said.append(f"run {launch.task.id}")
            return await run(launch)

        def drop(_launch: Assignment, task: str) -> None:
            said.append(f"drop {task}")

        sim.executor.load, sim.executor.run = slow, told  # type: ignore[method-assign]
        sim.executor.drop = drop  # type: ignore[method-assign]
        await sim.core.start()
        first, second = (asyncio.create_task(sim.core.generate(a_request(n))) for n in "ab")
        await asyncio.sleep(1)  # the encoder is loading for both
        first.cancel()
        await asyncio.sleep(2.5)
        heard = list(said)
        await second
        await sim.core.close()
        return heard

    assert run_virtual(scenario()) == ["drop a/encode/1", "run a/encode/1", "drop a/encode/1"]


def test_a_batch_that_fails_is_offered_again_task_by_task() -> None:
    async def scenario() -> dict[str, int]:
        sim = scripted(99.0, lambda _view: None)
        dispatcher = sim.core._dispatcher
        assert isinstance(dispatcher, Scripted)
        dispatcher.batch = True
        await sim.core.start()
        works = [asyncio.create_task(sim.core.generate(a_request(n))) for n in "ab"]
        await asyncio.sleep(5)
        dispatcher.batch = False
        sim.executor.kill(DeviceId("fake:0"))
        results = [await work for work in works]
        await sim.core.close()
        return {t.node: t.attempt for result in results for t in result.timeline}

    assert run_virtual(scenario()) == {"encode": 1, "diffuse-0": 2, "decode-0": 1}


def test_a_poison_rider_is_given_up_after_three_failures() -> None:
    async def scenario() -> None:
        sim = scripted(99.0, lambda _view: None)
        await sim.core.start()
        work = asyncio.create_task(sim.core.generate(a_request()))
        await asyncio.sleep(3)
        for _failure in range(3):
            sim.executor.kill(DeviceId("fake:0"))
            await asyncio.sleep(3)
        with pytest.raises(WorkerLostError):
            await work
        await sim.core.close()

    run_virtual(scenario())
