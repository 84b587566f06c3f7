"""The real core loop when devices, loads, policies or executors fail, and when it stops."""

from __future__ import annotations

import asyncio

import pytest

from engine.cluster import BARE_S
from engine.errors import (
    EngineClosedError,
    EngineCrashedError,
    StageFailedError,
    WorkerLostError,
)
from engine.messages import StageReport
from engine.types import (
    Assignment,
    ClusterView,
    DeviceId,
    DispatchPlan,
    ModelId,
    RequestId,
    StageKey,
    StageKind,
    StageTask,
)
from schedulers.sim.clock import run_virtual
from schedulers.static import EverywherePlanner
from tests.support.builders import MIB, a_request, a_spec, devices
from tests.support.engines import finish, simulated_engine


def test_a_killed_device_costs_a_retry_and_no_request() -> None:
    async def scenario() -> list[tuple[str, int]]:
        sim = simulated_engine()
        await sim.core.start()
        work = asyncio.create_task(sim.core.generate(a_request()))
        await asyncio.sleep(5)  # in the middle of diffuse
        sim.executor.kill(DeviceId("fake:1"))
        assert any("no live device" in reason for reason in sim.core.readiness())
        result = await work
        assert sim.core.readiness() == ()
        assert sim.executor.alive == {}
        await sim.core.close()
        return [(timing.node, timing.attempt) for timing in result.timeline]

    assert run_virtual(scenario()) == [("encode", 1), ("diffuse-0", 2), ("decode-0", 1)]


def test_a_task_that_kills_every_worker_fails_alone_after_three_attempts() -> None:
    async def scenario() -> None:
        sim = simulated_engine()
        await sim.core.start()
        poison = asyncio.create_task(sim.core.generate(a_request("poison")))
        for _attempt in range(3):
            running = sim.executor._running
            while not (deadly := [work for task, work in running.items() if "diffuse" in task]):
                await asyncio.sleep(0.5)
            sim.executor.kill(deadly[0].team[0])
            await asyncio.sleep(0.1)
        with pytest.raises(WorkerLostError):
            await poison
        await finish(sim, a_request("innocent"))

    run_virtual(scenario())


def test_closing_fails_unfinished_requests_as_retryable_elsewhere() -> None:
    async def scenario() -> None:
        sim = simulated_engine()
        await sim.core.start()
        work = asyncio.create_task(sim.core.generate(a_request()))
        await asyncio.sleep(3)
        await sim.core.close()
        with pytest.raises(EngineClosedError):
            await work
        with pytest.raises(EngineClosedError):
            await sim.core.generate(a_request("late"))

    run_virtual(scenario())


def test_an_engine_whose_policy_crashes_fails_its_requests_and_is_not_ready() -> None:
    class Broken:
        def plan(self, ready: list[StageTask], view: ClusterView) -> DispatchPlan:
            if ready:
                raise ZeroDivisionError
            return DispatchPlan(id=len(view.devices))

        def observe(self, assignment: Assignment, report: StageReport) -> None:
            raise AssertionError((assignment, report))

    async def scenario() -> None:
        sim = simulated_engine()
        sim.core._dispatcher = Broken()
        await sim.core.start()
        with pytest.raises(EngineCrashedError, match="ZeroDivisionError"):
            await sim.core.generate(a_request())
        assert "ZeroDivisionError" in sim.core.readiness()[0]
        await sim.core.close()

    run_virtual(scenario())


def test_a_launch_that_hits_a_bug_takes_its_engine_down_with_all_requests() -> None:
    async def scenario() -> None:
        sim = simulated_engine()
        run = sim.executor.run

        async def buggy(assignment: Assignment) -> tuple[StageReport, ...]:
            if assignment.task.request.id == "bad":
                raise ZeroDivisionError
            return await run(assignment)

        sim.executor.run = buggy  # type: ignore[method-assign]
        await sim.core.start()
        good = asyncio.create_task(sim.core.generate(a_request("good")))
        await asyncio.sleep(5)  # it diffuses
        with pytest.raises(EngineCrashedError, match="ZeroDivisionError"):
            await sim.core.generate(a_request("bad"))
        with pytest.raises(EngineCrashedError, match="ZeroDivisionError"):
            await good
        await sim.core.close()

    run_virtual(scenario())


def test_a_stage_that_cannot_be_loaded_fails_the_request_and_readiness_names_it() -> None:
    async def scenario() -> tuple[str, ...]:
        sim = simulated_engine()

        async def refuse(device: DeviceId, stage: object) -> float:
            del device
            raise StageFailedError(f"Cannot load {stage}: weights are torn", retryable=False)

        sim.executor.load = refuse  # type: ignore[method-assign]
        await sim.core.start()
        with pytest.raises(StageFailedError, match="weights are torn"):
            await sim.core.generate(a_request())
        reasons = sim.core.readiness()
        await sim.core.close()
        return reasons

    assert all("weights are torn" in reason for reason in run_virtual(scenario()))


@pytest.mark.parametrize("is_asked", [False, True])
def test_a_stage_that_could_not_be_loaded_once_is_tried_again(is_asked: bool) -> None:  # noqa: FBT001 - a parameter of pytest's
    async def scenario() -> list[float]:
        sim = simulated_engine(devices(1))
        load, tries_s = sim.executor.load, list[float]()

        async def stale(device: DeviceId, stage: StageKey) -> float:
            if stage.kind is not StageKind.DIFFUSE:
                return await load(device, stage)
            tries_s.append(asyncio.get_running_loop().time())
            if len(tries_s) < 3:
                raise StageFailedError("Stale file handle", retryable=False)
            return await load(device, stage)

        sim.executor.load = stale  # type: ignore[method-assign]
        await sim.core.start()
        await asyncio.sleep(1)
        assert "Stale file handle" in sim.core.readiness()[0]
        await asyncio.sleep(120)
        if is_asked:
            await sim.core.generate(a_request())
        assert sim.core.readiness() == ()
        await sim.core.close()
        return [round(later - tries_s[0]) for later in tries_s]

    assert run_virtual(scenario()) == [0, 30, 90]


def test_a_stage_of_which_workers_died_is_served_again_after_a_pause() -> None:
    async def scenario() -> None:
        sim = simulated_engine(devices(1))
        load, deaths = sim.executor.load, 0

        async def crowded(device: DeviceId, stage: StageKey) -> float:
            nonlocal deaths
            if stage.kind is StageKind.DIFFUSE and deaths < 3:
                deaths += 1
                sim.executor.kill(device)
                raise WorkerLostError("the kernel killed it for want of memory")
            return await load(device, stage)

        sim.executor.load = crowded  # type: ignore[method-assign]
        await sim.core.start()
        await asyncio.sleep(60)
        with pytest.raises(StageFailedError, match=r"died 3 times .* tried again in \d+ s"):
            await sim.core.generate(a_request("early"))
        await asyncio.sleep(300)
        await sim.core.generate(a_request("late"))
        await sim.core.close()

    run_virtual(scenario())


def test_when_all_others_are_gone_a_device_in_quarantine_is_better_than_none() -> None:
    async def scenario() -> float:
        sim = simulated_engine(devices(2))
        sim.core._planner = EverywherePlanner([a_spec()])
        await sim.core.start()
        await asyncio.sleep(5)
        bad, good = (DeviceId(f"fake:{i}") for i in range(2))
        quarantine, now_s = sim.core.cluster.quarantine, asyncio.get_running_loop().time
        for number in range(20):  # as if it had been there again and again
            quarantine.mark(bad, RequestId(f"r{number}"), sim.core.view().now_s, spare=False)
            for record in quarantine._records.values():
                record.until_s = None
        quarantine.mark(bad, RequestId("last"), sim.core.view().now_s, spare=False)
        assert [device.info.id for device in sim.core.view().devices] == [good]
        work, began_s = asyncio.create_task(sim.core.generate(a_request())), now_s()
        sim.executor.kill(good, for_good=True)
        await work
        await sim.core.close()
        return now_s() - began_s

    assert BARE_S < run_virtual(scenario()) < 2 * BARE_S


def test_deaths_before_a_worker_had_begun_to_load_are_not_the_stages_fault() -> None:
    async def scenario() -> None:
        sim = simulated_engine(devices(1))
        load, deaths = sim.executor.load, 0

        async def unlucky(device: DeviceId, stage: StageKey) -> float:
            nonlocal deaths
            if stage.kind is StageKind.DIFFUSE and deaths < 5:
                deaths += 1
                sim.executor.kill(device)
                raise WorkerLostError("killed while it waited for the host copy", began=False)
            return await load(device, stage)

        sim.executor.load = unlucky  # type: ignore[method-assign]
        await sim.core.start()
        await asyncio.sleep(60)
        assert deaths == 5
        await sim.core.generate(a_request())
        await sim.core.close()

    run_virtual(scenario())


def test_a_load_without_memory_is_tried_again_on_a_device_that_was_cleared() -> None:
    async def scenario() -> set[StageKind]:
        sim = simulated_engine(devices(1))
        load, unloaded = sim.executor.load, set[StageKind]()

        async def crowded(device: DeviceId, stage: StageKey) -> float:
            if stage.kind is StageKind.DIFFUSE and not unloaded:
                raise StageFailedError("OutOfMemoryError", retryable=True)
            return await load(device, stage)

        async def unload(_device: DeviceId, stage: StageKey) -> None:
            unloaded.add(stage.kind)

        sim.executor.load, sim.executor.unload = crowded, unload  # type: ignore[method-assign]
        await sim.core.start()
        await sim.core.generate(a_request())
        await sim.core.close()
        return unloaded

    assert StageKind.ENCODE in run_virtual(scenario())


def test_cancelling_during_a_load_runs_nothing() -> None:
    async def scenario() -> list[object]:
        sim = simulated_engine(devices(1, memory_bytes=130 * MIB), load_s=lambda _stage: 3.0)
        await sim.core.start()
        await asyncio.sleep(4)  # encode is preloaded; diffuse and decode are loaded on demand
        work = asyncio.create_task(sim.core.generate(a_request()))
        await asyncio.sleep(2)  # encode is done, diffuse is being loaded
        work.cancel()
        await asyncio.sleep(20)
        assert sim.core.cluster.teams.busy == frozenset()
        assert sim.executor.alive == {}
        await sim.core.close()
        return [task for task, _device, _start in sim.executor.launches]

    assert run_virtual(scenario()) == ["r1/encode/1"]


def test_a_device_killed_during_a_load_is_tried_again_after_its_restart() -> None:
    async def scenario() -> list[tuple[str, int]]:
        sim = simulated_engine(devices(1, memory_bytes=130 * MIB), load_s=lambda _stage: 3.0)
        await sim.core.start()
        await asyncio.sleep(4)
        work = asyncio.create_task(sim.core.generate(a_request()))
        await asyncio.sleep(2)
        sim.executor.kill(DeviceId("fake:0"))
        result = await work
        await sim.core.close()
        return [(timing.node, timing.attempt) for timing in result.timeline]

    assert run_virtual(scenario()) == [("encode", 1), ("diffuse-0", 2), ("decode-0", 1)]


def test_a_model_that_kills_its_worker_while_loading_does_not_take_others_down() -> None:
    async def scenario() -> tuple[int, tuple[str, ...]]:
        specs = [a_spec("poison"), a_spec()]
        sim = simulated_engine(devices(1, memory_bytes=4096 * MIB), specs=specs)
        kills, load = 0, sim.executor.load

        async def deadly(device: DeviceId, stage: StageKey) -> float:
            nonlocal kills
            if stage == StageKey(ModelId("poison"), StageKind.DIFFUSE):
                kills += 1
                sim.executor.kill(device)
                raise WorkerLostError("killed while loading")
            return await load(device, stage)

        sim.executor.load = deadly  # type: ignore[method-assign]
        await sim.core.start()
        await sim.core.generate(a_request())
        await asyncio.sleep(3600)
        await sim.core.close()
        return kills, sim.core.readiness()

    kills, _reasons = run_virtual(scenario())
    assert kills == 6  # three at once, then after 300 s, 600 s and 1,200 s


def test_a_retry_after_an_out_of_memory_finds_the_device_cleared() -> None:
    async def scenario() -> tuple[list[int], int]:
        sim = simulated_engine(devices(1))
        attempts, run, unload = [], sim.executor.run, sim.executor.unload
        unloaded = 0

        async def crowded(assignment: Assignment) -> StageReport:
            attempts.append(assignment.task.attempt)
            if assignment.task.stage.kind is StageKind.DIFFUSE and assignment.task.attempt == 1:
                raise StageFailedError("OutOfMemoryError", retryable=True)
            return await run(assignment)

        async def counted(device: DeviceId, stage: StageKey) -> None:
            nonlocal unloaded
            unloaded += 1
            await unload(device, stage)

        sim.executor.run, sim.executor.unload = crowded, counted  # type: ignore[method-assign]
        await sim.core.start()
        await asyncio.sleep(1)  # all three stages are preloaded
        await sim.core.generate(a_request())
        await sim.core.close()
        return attempts, unloaded

    # the decode that was to follow the first diffuse is refused, and loaded again for its own launch
    assert run_virtual(scenario()) == ([1, 1, 1, 2, 1], 2)


def test_readiness_says_in_one_sentence_that_no_worker_is_up() -> None:
    async def scenario() -> tuple[str, ...]:
        sim = simulated_engine(devices(2), restart_s=5.0)
        await sim.core.start()
        for device in sim.executor.devices:
            sim.executor.kill(device)
        reasons = sim.core.readiness()
        await sim.core.close()
        return reasons

    assert run_virtual(scenario()) == ("None of the 2 workers is up yet.",)


def test_readiness_refuses_what_the_ledger_would_refuse() -> None:
    async def scenario() -> tuple[str, ...]:
        sim = simulated_engine(devices(3, memory_bytes=101 * MIB))
        await sim.core.start()
        await asyncio.sleep(1)
        reasons = sim.core.readiness()
        await sim.core.close()
        return reasons

    assert "needs 116 MiB" in run_virtual(scenario())[0]


def test_a_failed_load_that_succeeds_later_leaves_no_mark_on_readiness() -> None:
    async def scenario() -> tuple[tuple[str, ...], tuple[str, ...]]:
        sim = simulated_engine(devices(1))
        load, failures = sim.executor.load, 1

        async def flaky(device: DeviceId, stage: StageKey) -> float:
            nonlocal failures
            if stage.kind is StageKind.DIFFUSE and failures:
                failures -= 1
                raise StageFailedError("disk hiccup", retryable=False)
            return await load(device, stage)

        sim.executor.load = flaky  # type: ignore[method-assign]
        await sim.core.start()
        await asyncio.sleep(1)
        before = sim.core.readiness()
        await sim.core.generate(a_request())
        after = sim.core.readiness()
        await sim.core.close()
        return before, after

    before, after = run_virtual(scenario())
    assert "disk hiccup" in before[0]
    assert after == ()


def test_an_executor_that_breaks_stops_the_engine_for_others_to_take_over() -> None:
    async def scenario() -> None:
        sim = simulated_engine()
        await sim.core.start()
        work = asyncio.create_task(sim.core.generate(a_request()))
        await asyncio.sleep(1)
        sim.core.listener.executor_failed("socket gone")
        with pytest.raises(EngineCrashedError, match="socket gone"):
            await work
        assert sim.core.is_closed
        assert "socket gone" in sim.core.readiness()[0]
        await sim.core.close()

    run_virtual(scenario())
