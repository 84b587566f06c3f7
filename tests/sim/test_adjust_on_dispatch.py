"""Adjust-on-Dispatch, step by step on the virtual clock."""

from __future__ import annotations

import asyncio

from engine.types import DeviceId, Placement, StageKey, StageKind
from schedulers.sim.clock import run_virtual
from tests.support.builders import MIB, MODEL, a_request, devices
from tests.support.engines import SimulatedEngine, simulated_engine

DEVICE = DeviceId("fake:0")
ENCODE, DIFFUSE, DECODE = (StageKey(MODEL, kind) for kind in StageKind)
ALL = frozenset({ENCODE, DIFFUSE, DECODE})
LOAD_S = 5.0


def engine(memory_bytes: int, placement: frozenset[StageKey] = ALL) -> SimulatedEngine:
    sim = simulated_engine(devices(1, memory_bytes), load_s=lambda _stage: LOAD_S)
    wanted = [Placement(1, {DEVICE: placement})]
    sim.core._planner.place = lambda *_args: wanted.pop() if wanted else None  # type: ignore[method-assign]
    sim.wanted = wanted
    return sim


def switch(sim: SimulatedEngine, version: int, stages: frozenset[StageKey]) -> None:
    sim.wanted.append(Placement(version, {DEVICE: stages}))
    sim.core._wake.set()


def test_a_device_that_fills_itself_serves_meanwhile() -> None:
    async def scenario() -> float:
        sim = engine(1024 * MIB)
        await sim.core.start()
        await asyncio.sleep(LOAD_S + 0.1)  # the encoder is there, the denoiser on its way
        [arrival] = sim.core._loader._arrivals.values()
        assert arrival.stage == DIFFUSE
        work = asyncio.create_task(sim.core.generate(a_request()))
        await asyncio.sleep(0.1)
        assert sim.core.cluster.teams.busy
        result = await work
        await sim.core.close()
        return result.timeline[0].queue_wait_s

    assert run_virtual(scenario()) == 0.0


def test_a_switch_that_is_superseded_half_way_stops_its_loads_and_frees_their_memory() -> None:
    async def scenario() -> None:
        sim = engine(230 * MIB, frozenset({ENCODE}))
        await sim.core.start()
        await asyncio.sleep(LOAD_S + 1.0)
        switch(sim, 2, frozenset({DECODE}))
        await asyncio.sleep(LOAD_S / 2)
        memory = sim.core.cluster.memories[DEVICE]
        assert set(memory.weights) == {ENCODE, DECODE}
        switch(sim, 3, frozenset({ENCODE}))
        await asyncio.sleep(0.1)
        assert set(memory.weights) == {ENCODE}
        assert sim.executor._running == {}
        sim.core.check_integrity()
        await sim.core.close()

    run_virtual(scenario())


def test_a_load_that_a_launch_waits_for_is_not_superseded() -> None:
    async def scenario() -> None:
        sim = engine(1024 * MIB)
        await sim.core.start()
        work = asyncio.create_task(sim.core.generate(a_request()))
        await asyncio.sleep(0.1)
        switch(sim, 2, frozenset({DIFFUSE, DECODE}))
        await asyncio.sleep(0.1)
        assert ENCODE in sim.core.cluster.memories[DEVICE].weights
        switch(sim, 3, ALL)
        result = await work
        assert [timing.attempt for timing in result.timeline] == [1, 1, 1]
        await sim.core.close()

    run_virtual(scenario())


def test_a_launch_takes_the_memory_of_a_load_that_nobody_waits_for() -> None:
    async def scenario() -> float:
        sim = engine(230 * MIB, frozenset({ENCODE, DECODE}))
        await sim.core.start()
        await asyncio.sleep(LOAD_S * 1.5)  # the decoder is half there and fills the device
        switch(sim, 2, frozenset({ENCODE, DIFFUSE, DECODE}))
        began_s = asyncio.get_running_loop().time()
        await sim.core.generate(a_request())
        sim.core.check_integrity()
        await sim.core.close()
        return asyncio.get_running_loop().time() - began_s

    assert run_virtual(scenario()) < 3 * LOAD_S + 13 + 1.0


def test_cancelling_a_request_that_waits_for_weights_frees_its_team_at_once() -> None:
    async def scenario() -> None:
        sim = engine(1024 * MIB)
        await sim.core.start()
        work = asyncio.create_task(sim.core.generate(a_request()))
        await asyncio.sleep(1.0)
        assert sim.core.cluster.teams.busy
        work.cancel()
        await asyncio.sleep(0.01)
        assert not sim.core.cluster.teams.busy
        assert ENCODE in sim.core.cluster.memories[DEVICE].weights  # the load goes on
        sim.core.check_integrity()
        await sim.core.close()

    run_virtual(scenario())
