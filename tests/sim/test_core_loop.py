"""The real core loop in virtual time: order, overlap, cancellation, memory, spans."""

from __future__ import annotations

import asyncio

import pytest

from engine.errors import (
    EngineBusyError,
    InvalidRequestError,
    RequestImpossibleError,
)
from engine.types import (
    DeviceId,
    ModelId,
    StageKind,
)
from observability import semconv
from schedulers.sim.clock import DeadlockError, run_virtual
from tests.support.builders import MIB, a_request, a_spec, devices
from tests.support.engines import STAGE_SECONDS, SimulatedEngine, finish, simulated_engine


def now() -> float:
    return asyncio.get_running_loop().time()


def test_one_request_takes_the_sum_of_its_stages_on_idle_devices() -> None:
    async def scenario() -> float:
        await finish(simulated_engine(), a_request())
        return now()

    assert run_virtual(scenario()) == pytest.approx(sum(STAGE_SECONDS.values()))


def test_stages_of_different_requests_overlap_on_their_own_devices() -> None:
    async def scenario() -> float:
        requests = [a_request(f"r{i}") for i in range(4)]
        await finish(simulated_engine(), *requests)
        return now()

    # encode 1 + four diffuses in a row + decode 2; all else is hidden behind the diffuses
    assert run_virtual(scenario()) == pytest.approx(1 + 4 * 10 + 2)


def test_outputs_of_one_request_diffuse_side_by_side_and_come_back_in_order() -> None:
    async def scenario() -> tuple[float, list[int]]:
        [result] = await finish(simulated_engine(devices(5)), a_request(n=3, seed=40))
        return now(), [artifact.seed for artifact in result.artifacts]

    assert run_virtual(scenario()) == (pytest.approx(1 + 10 + 3 * 2), [40, 41, 42])


def test_the_earlier_deadline_goes_first_whatever_the_order_of_arrival() -> None:
    async def scenario() -> list[str]:
        sim = simulated_engine(devices(1))
        relaxed = [a_request(f"relaxed{i}", deadline_s=500.0) for i in range(2)]
        await finish(sim, *relaxed, a_request("urgent", deadline_s=50.0))
        return [task for task, _device, _start in sim.executor.launches]

    assert run_virtual(scenario())[:3] == [
        "urgent/encode/1",
        "urgent/diffuse-0/1",
        "urgent/decode-0/1",
    ]


def test_cancelling_the_caller_frees_the_devices_and_the_hand_offs() -> None:
    async def scenario() -> float:
        sim = simulated_engine()
        await sim.core.start()
        work = asyncio.create_task(sim.core.generate(a_request()))
        await asyncio.sleep(5)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        await asyncio.sleep(0.1)
        assert sim.executor.alive == {}
        assert sim.core.cluster.teams.busy == frozenset()
        await finish(sim, a_request("next"))
        return now()

    assert run_virtual(scenario()) == pytest.approx(5.1 + 13)


def test_a_stage_that_fits_no_device_is_refused_with_its_size() -> None:
    async def scenario() -> None:
        sim = simulated_engine(devices(3, memory_bytes=90 * MIB))
        await sim.core.start()
        with pytest.raises(
            RequestImpossibleError, match=r"needs 116 MiB on one device.*has 90 MiB;"
        ):
            await sim.core.generate(a_request())
        await sim.core.close()

    run_virtual(scenario())


def test_a_device_too_small_for_all_stages_swaps_them_and_never_overcommits() -> None:
    async def scenario() -> tuple[float, float]:
        sim = simulated_engine(devices(1, memory_bytes=130 * MIB), load_s=lambda _stage: 3.0)
        await finish(sim, a_request())
        first = now()
        assert len(sim.core.cluster.memories[DeviceId("fake:0")].weights) == 1
        return first, 3 * 3 + sum(STAGE_SECONDS.values())

    measured, expected = run_virtual(scenario())
    assert measured == pytest.approx(expected)


def test_a_full_engine_says_so_and_keeps_what_it_has() -> None:
    async def scenario() -> None:
        sim = simulated_engine(max_requests=1)
        await sim.core.start()
        first = asyncio.create_task(sim.core.generate(a_request("first")))
        await asyncio.sleep(1)
        with pytest.raises(EngineBusyError, match="holds 1 requests"):
            await sim.core.generate(a_request("second"))
        await first
        await sim.core.close()

    run_virtual(scenario())


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": ModelId("unknown")}, "model"),
        ({"steps": 0}, "num_inference_steps"),
        ({"steps": 10_000}, "num_inference_steps"),
    ],
)
def test_what_the_model_cannot_do_never_reaches_a_device(
    changes: dict[str, object], param: str
) -> None:
    async def scenario() -> list[object]:
        sim = simulated_engine()
        await sim.core.start()
        with pytest.raises(InvalidRequestError) as caught:
            await sim.core.generate(a_request(**changes))
        await sim.core.close()
        return [caught.value.param, sim.executor.launches]

    assert run_virtual(scenario()) == [param, []]


def test_the_engine_is_not_ready_until_every_stage_is_loaded() -> None:
    async def scenario() -> list[int]:
        sim = simulated_engine(load_s=lambda _stage: 5.0)
        await sim.core.start()
        await asyncio.sleep(1)
        waiting = len(sim.core.readiness())
        await asyncio.sleep(5)
        ready = len(sim.core.readiness())
        await sim.core.close()
        return [waiting, ready]

    assert run_virtual(scenario()) == [3, 0]


def test_each_stage_gets_one_span_with_its_waits_and_device() -> None:
    async def scenario() -> SimulatedEngine:
        sim = simulated_engine(devices(1))
        await finish(sim, a_request("r1"), a_request("r2", deadline_s=200.0))
        return sim

    sim = run_virtual(scenario())
    spans = [s for s in sim.spans.get_finished_spans() if s.attributes[semconv.ATTR_JOB_ID] == "r2"]
    assert [s.name for s in spans] == ["stage encode", "stage diffuse", "stage decode"]
    encode = spans[0].attributes
    assert encode[semconv.ATTR_QUEUE_WAIT_S] == pytest.approx(13.0)
    assert encode[semconv.ATTR_TEAM] == ("fake:0",)
    assert spans[1].attributes[semconv.ATTR_RUN_S] == pytest.approx(10.0)
    assert spans[1].end_time - spans[1].start_time == pytest.approx(10e9, rel=1e-6)


def test_the_monitor_counts_what_ran_without_any_exporter() -> None:
    async def scenario() -> SimulatedEngine:
        sim = simulated_engine()
        await finish(sim, a_request("r1"), a_request("r2"))
        return sim

    snapshot = run_virtual(scenario()).monitor.snapshot(30.0)
    by_stage = {key.stage: window for key, window in snapshot.classes.items()}
    assert {kind.value: 2 for kind in StageKind} == {s: w.finished for s, w in by_stage.items()}
    assert by_stage["diffuse"].mean_service_s == pytest.approx(10.0)
    assert not snapshot.blind


def test_requests_are_demand_when_they_arrive_and_not_when_their_stages_run() -> None:
    async def asked_for() -> list[int]:
        sim = simulated_engine(devices(1))
        await sim.core.start()
        waiting = [
            asyncio.create_task(sim.core.generate(a_request(f"r{i}", n=2))) for i in range(3)
        ]
        await asyncio.sleep(1)
        first = sim.monitor.snapshot(1.0)
        await asyncio.gather(*waiting)
        later = sim.monitor.snapshot(1001.0)  # decodes of this window, arrivals of the one before
        assert {key.stage for key, window in later.classes.items() if window.started}
        await sim.core.close()
        return [
            sum(wish.outputs for wish in snapshot.asked.values()) for snapshot in (first, later)
        ]

    assert run_virtual(asked_for()) == [6, 0]


def test_the_same_requests_give_the_same_schedule_every_time() -> None:
    async def scenario() -> list[tuple[str, DeviceId, float]]:
        sim = simulated_engine(devices(4), duration_s=lambda task: 1 + len(task.request.id) % 3)
        await finish(sim, *(a_request(f"r{'x' * i}", n=1 + i % 3) for i in range(8)))
        return sim.executor.launches

    assert run_virtual(scenario()) == run_virtual(scenario())


def test_a_simulation_that_can_never_move_again_says_so() -> None:
    async def scenario() -> None:
        await asyncio.Event().wait()

    with pytest.raises(DeadlockError):
        run_virtual(scenario())


def test_two_requests_of_one_id_are_not_mixed_up() -> None:
    async def scenario() -> None:
        sim = simulated_engine()
        await sim.core.start()
        first = asyncio.create_task(sim.core.generate(a_request("same")))
        await asyncio.sleep(1)
        with pytest.raises(EngineBusyError):
            await sim.core.generate(a_request("same"))
        await first
        await sim.core.close()

    run_virtual(scenario())


def test_every_served_model_is_placed_and_runs() -> None:
    async def scenario() -> list[int]:
        sim = simulated_engine(specs=[a_spec(), a_spec("other")])
        results = await finish(sim, a_request(), a_request("r2", model=ModelId("other")))
        return [len(result.artifacts) for result in results]

    assert run_virtual(scenario()) == [1, 1]


def test_a_waiting_request_goes_before_preloading() -> None:
    async def scenario() -> float:
        specs = [a_spec(f"m{i}") for i in range(6)]
        sim = simulated_engine(
            devices(1, memory_bytes=4096 * MIB), specs=specs, load_s=lambda _stage: 10.0
        )
        await sim.core.start()
        await sim.core.generate(a_request(model=ModelId("m5")))
        finished = now()
        await sim.core.close()
        return finished

    # at most one preload in front of each of its three stages, not all eighteen
    assert run_virtual(scenario()) <= 3 * (10 + 10) + sum(STAGE_SECONDS.values())
