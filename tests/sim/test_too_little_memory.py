"""Devices that cannot run a stage: every live policy says so on the request, and serves on."""

from __future__ import annotations

import asyncio

import pytest

from engine import RequestImpossibleError, Shape
from engine.types import StageKind
from schedulers.cost import CostModel
from schedulers.dispatch.knobs import WORKERS
from schedulers.planner.demand import uniform
from schedulers.policies import LIVE_POLICIES, Setup, build_policy
from schedulers.sim.clock import run_virtual
from tests.support.builders import MIB, a_request, a_spec, devices
from tests.support.engines import SimulatedEngine, simulated_engine

WEIGHTS_MIB = 100  # of each stage; an encode takes 16 MiB beside them


def engine_of(policy: str, memory_mib: int, count: int) -> SimulatedEngine:
    infos, spec = devices(count, memory_bytes=memory_mib * MIB), a_spec()
    sim = simulated_engine(infos, specs=[spec])
    setup = Setup(
        specs=[spec],
        cost=CostModel([spec]),
        nodes={info.id: info.node for info in infos},
        prior=uniform({spec.id: (spec.default_shape,)}, {spec.id: spec.default_steps}),
        base=WORKERS,
    )
    built = build_policy(policy, setup)
    sim.core._dispatcher, sim.core._planner = built.dispatcher, built.planner
    return sim


@pytest.mark.parametrize("policy", LIVE_POLICIES)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("memory_mib", [1, WEIGHTS_MIB - 1, WEIGHTS_MIB + 1])
def test_memory_that_no_stage_fits_into_refuses_requests_and_breaks_nothing(
    policy: str, count: int, memory_mib: int
) -> None:
    async def scenario() -> None:
        sim = engine_of(policy, memory_mib, count)
        await sim.core.start()
        await asyncio.sleep(1)
        for number in range(2):
            async with asyncio.timeout(60):
                with pytest.raises(RequestImpossibleError, match=r"needs \d+ MiB"):
                    await sim.core.generate(a_request(f"r{number}"))
        assert sim.core.readiness() != ()
        assert not sim.core.is_closed
        sim.core.check_integrity()
        await sim.core.close()

    run_virtual(scenario())


@pytest.mark.parametrize("policy", LIVE_POLICIES)
def test_a_size_that_is_too_large_is_refused_and_a_smaller_one_served(policy: str) -> None:
    async def scenario() -> set[StageKind]:
        sim = engine_of(policy, WEIGHTS_MIB + 30, 3)
        await sim.core.start()
        await asyncio.sleep(1)
        async with asyncio.timeout(200):
            with pytest.raises(RequestImpossibleError, match=r"at 512x512 needs \d+ MiB"):
                await sim.core.generate(a_request("large", shape=Shape(512, 512)))
            result = await sim.core.generate(a_request("small"))
        await sim.core.close()
        return {timing.stage for timing in result.timeline}

    assert run_virtual(scenario()) == set(StageKind)
