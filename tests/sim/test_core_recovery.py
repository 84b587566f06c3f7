"""Who is blamed for failed launches: poison, bad devices, batches; on the virtual clock."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from engine.errors import HandoffLostError, NotFiniteError, StageFailedError, WorkerLostError
from engine.messages import StageReport
from engine.types import Assignment, DeviceId, NodeId, StageKind
from schedulers.dispatch.knobs import Knobs
from schedulers.sim.clock import run_virtual
from schedulers.static import EverywherePlanner
from tests.support.builders import a_request, a_spec, devices
from tests.support.engines import SimulatedEngine, simulated_engine

Fate = Callable[[Assignment], Exception | None]


def disturbed(fate: Fate, count: int = 4, batch: int = 1) -> SimulatedEngine:
    """Return an engine of devices that run everything; `fate` says how a launch fails."""
    sim = simulated_engine(devices(count))
    sim.core._planner = EverywherePlanner([a_spec()])
    sim.core._dispatcher._knobs = Knobs(batch=batch, resize=False)
    run = sim.executor.run

    async def fated(assignment: Assignment) -> tuple[StageReport, ...]:
        error = fate(assignment)
        if error is None:
            return await run(assignment)
        await asyncio.sleep(0.5)
        if isinstance(error, WorkerLostError) and not isinstance(error, HandoffLostError):
            sim.executor.kill(assignment.team[0])
        raise error

    sim.executor.run = fated  # type: ignore[method-assign]
    return sim


def is_poison(assignment: Assignment) -> bool:
    diffuses = assignment.task.stage.kind is StageKind.DIFFUSE
    return diffuses and any(t.request.id == "poison" for t in assignment.tasks)


def test_a_poisonous_request_kills_few_workers_and_costs_no_other_request_an_attempt() -> None:
    kills = []

    def fate(assignment: Assignment) -> Exception | None:
        if not is_poison(assignment):
            return None
        kills.append(assignment.team[0])
        return WorkerLostError(f"Worker of {assignment.team[0]} ended with SIGSEGV.")

    async def scenario() -> str:
        sim = disturbed(fate)
        await sim.core.start()
        poison = asyncio.create_task(sim.core.generate(a_request("poison", n=10)))
        others = [sim.core.generate(a_request(f"r{i}")) for i in range(10)]
        results = await asyncio.gather(*others)
        assert all(t.attempt == 1 for result in results for t in result.timeline)
        with pytest.raises(WorkerLostError) as error:
            await poison
        assert sim.core.notices() == ()
        sim.core.check_integrity()
        await sim.core.close()
        return str(error.value)

    message = run_virtual(scenario())
    assert len(kills) <= 4 + 2  # what ran at once, then one at a time
    assert "failed 3 times in a row, alone each time" in message
    assert "SIGSEGV" in message


def test_a_launch_that_its_worker_had_not_begun_with_costs_no_attempt() -> None:
    unlucky = [WorkerLostError("Worker ended with SIGKILL.", began=False) for _ in range(5)]

    def fate(assignment: Assignment) -> Exception | None:
        is_diffuse = assignment.task.stage.kind is StageKind.DIFFUSE
        return unlucky.pop() if is_diffuse and unlucky else None

    async def scenario() -> None:
        sim = disturbed(fate)
        await sim.core.start()
        await sim.core.generate(a_request())
        assert not unlucky
        assert sim.core.notices() == ()  # no device is blamed either
        sim.core.check_integrity()
        await sim.core.close()

    run_virtual(scenario())


def losing_latents(times: int) -> Fate:
    """Have each latent go with its node so many times, just before it is decoded."""
    losses: Counter[NodeId] = Counter()

    def fate(assignment: Assignment) -> Exception | None:
        task = assignment.task
        if task.stage.kind is not StageKind.DECODE or losses[task.node] == times:
            return None
        losses[task.node] += 1
        return HandoffLostError("It went with its node.", task.inputs)

    return fate


def test_two_nodes_that_go_with_latents_of_all_pictures_of_a_request_do_not_end_it() -> None:
    async def scenario() -> int:
        sim = disturbed(losing_latents(times=2))
        await sim.core.start()
        result = await sim.core.generate(a_request(n=10))
        sim.core.check_integrity()
        await sim.core.close()
        return len(result.artifacts)

    assert run_virtual(scenario()) == 10


def test_a_request_whose_latents_always_go_with_a_node_is_given_up() -> None:
    async def scenario() -> None:
        sim = disturbed(losing_latents(times=1000))
        await sim.core.start()
        with pytest.raises(HandoffLostError):
            await sim.core.generate(a_request(n=2))
        sim.core.check_integrity()
        await sim.core.close()

    run_virtual(scenario())


def test_a_bad_device_is_quarantined_told_and_tried_again_later() -> None:
    bad, failures = DeviceId("fake:0"), []

    def fate(assignment: Assignment) -> Exception | None:
        if assignment.team != (bad,):
            return None
        failures.append(assignment.task.request.id)
        return NotFiniteError("4 of 16 numbers of the latent after 4 steps are NaN or infinite.")

    async def scenario() -> None:
        sim = disturbed(fate)
        await sim.core.start()
        for number in range(4):  # 13 s each, a little more for the first three
            await sim.core.generate(a_request(f"r{number}"))
        assert failures == ["r0", "r1", "r2"]
        [notice] = sim.core.notices()
        assert "fake:0 is in quarantine" in notice
        assert sim.core.readiness() == ()
        assert bad not in {d.info.id for d in sim.core.view().devices}
        await asyncio.sleep(31)
        assert sim.core.notices() == ()
        await sim.core.generate(a_request("probation"))
        assert len(failures) == 4
        assert len(sim.core.notices()) == 1
        await sim.core.close()

    run_virtual(scenario())


def test_a_device_that_is_back_before_its_launch_has_ended_is_blamed_all_the_same() -> None:
    bad = DeviceId("fake:0")

    async def scenario() -> tuple[str, ...]:
        sim = simulated_engine(devices(2))
        sim.core._planner = EverywherePlanner([a_spec()])
        run = sim.executor.run

        async def deadly(assignment: Assignment) -> tuple[StageReport, ...]:
            if bad not in assignment.team:
                return await run(assignment)
            sim.executor.kill(bad)
            await asyncio.sleep(5)  # for a peer to notice; the device is back after one
            raise WorkerLostError("Worker of fake:0 ended.", devices=(bad,))

        sim.executor.run = deadly  # type: ignore[method-assign]
        await sim.core.start()
        for number in range(3):
            await sim.core.generate(a_request(f"r{number}"))
        notices = sim.core.notices()
        await sim.core.close()
        return notices

    [notice] = run_virtual(scenario())
    assert "fake:0 is in quarantine" in notice


def test_a_retry_goes_to_another_device_than_the_one_it_failed_on() -> None:
    def fate(assignment: Assignment) -> Exception | None:
        task = assignment.task
        if task.stage.kind is StageKind.DIFFUSE and task.attempt == 1:
            return NotFiniteError("NaN")
        return None

    async def scenario() -> list[tuple[str, int]]:
        sim = disturbed(fate)
        await sim.core.start()
        await asyncio.sleep(1)
        result = await sim.core.generate(a_request())
        failed = [s for s in sim.spans.get_finished_spans() if s.status.status_code.name == "ERROR"]
        [team] = [s.attributes["tridentserve.team.devices"] for s in failed if s.attributes]
        assert list(team) != [result.timeline[1].device]
        await sim.core.close()
        return [(t.node, t.attempt) for t in result.timeline]

    assert run_virtual(scenario())[1] == ("diffuse-0", 2)


def test_what_fails_together_loses_no_attempt_and_runs_alone_afterwards() -> None:
    launches: list[list[str]] = []

    def fate(assignment: Assignment) -> Exception | None:
        if assignment.task.stage.kind is not StageKind.ENCODE:
            return None
        names = [task.request.id for task in assignment.tasks]
        launches.append(names)
        return StageFailedError("bad text", retryable=False) if "bad" in names else None

    async def scenario() -> None:
        sim = disturbed(fate, count=3, batch=8)
        sim.core._planner = simulated_engine().core._planner  # a pool that encodes in batches
        await sim.core.start()
        good = [asyncio.create_task(sim.core.generate(a_request(f"r{i}"))) for i in range(3)]
        bad = asyncio.create_task(sim.core.generate(a_request("bad")))
        results = await asyncio.gather(*good)
        with pytest.raises(StageFailedError, match="bad text"):
            await bad
        assert [r.timeline[0].attempt for r in results] == [2, 2, 2]
        await sim.core.close()

    run_virtual(scenario())
    assert sorted(launches[0]) == ["bad", "r0", "r1", "r2"]
    assert sorted(launches[1:]) == [["bad"], ["r0"], ["r1"], ["r2"]]


def test_a_static_placement_gives_a_quarantined_devices_stages_to_others() -> None:
    def fate(assignment: Assignment) -> Exception | None:
        encodes = assignment.task.stage.kind is StageKind.ENCODE
        if not encodes or assignment.team != (DeviceId("fake:0"),):
            return None
        return WorkerLostError("Worker of fake:0 ended with code 1.")

    async def scenario() -> None:
        sim = disturbed(fate, count=4)
        sim.core._planner = simulated_engine().core._planner
        await sim.core.start()
        requests = [sim.core.generate(a_request(f"r{i}")) for i in range(3)]
        results = await asyncio.gather(*requests)
        assert {r.timeline[0].device for r in results} == {"fake:1"}
        assert sim.core.cluster.placement.version == 3  # without it, and with it again
        await sim.core.close()

    run_virtual(scenario())
