"""Placements that change while real workers run: pictures stay the same, memory stays within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from engine import (
    EngineCore,
    GenerationRequest,
    ModelId,
    PipelineSpec,
    RequestId,
    Shape,
    SystemClock,
    open_pipeline,
)
from engine.executors.local import LocalExecutor
from engine.types import ClusterView, DeviceId, Placement, StageKey, StageKind
from observability.snapshot import MonitorSnapshot
from observability.tracing import StageSpans, build_provider
from schedulers.cost import CostModel
from schedulers.dispatch.knobs import WORKERS
from schedulers.dispatch.trident import TridentDispatcher

FAMILIES = ("sd3", "sd")
DEVICES = (DeviceId("cpu:0"), DeviceId("cpu:1"))
STAGE_BYTES = 200 << 20  # as the ledger is told, so that two stages fill a device
pytestmark = pytest.mark.asyncio(loop_scope="module")


class Wish:
    """A planner that wants what the test says."""

    def __init__(self) -> None:
        self.version = 0
        self._next: Placement | None = None

    def set(self, *stages: frozenset[StageKey]) -> None:
        self.version += 1
        self._next = Placement(self.version, dict(zip(DEVICES, stages, strict=True)))

    def place(self, view: ClusterView, snapshot: MonitorSnapshot | None) -> Placement | None:
        del view, snapshot
        wanted, self._next = self._next, None
        return wanted


class Switching:
    """Two workers that can hold two stages of the six at once."""

    def __init__(self, specs: list[PipelineSpec]) -> None:
        self.specs = [
            msgspec.structs.replace(spec, weight_bytes=dict.fromkeys(StageKind, STAGE_BYTES))
            for spec in specs
        ]
        self.wish = Wish()
        self.executor = LocalExecutor(
            self.specs, devices=2, threads=1, memory_bytes=5 * STAGE_BYTES // 2
        )
        self.wish.set(self.stages_of(0), self.stages_of(1))
        self.core = EngineCore(
            self.specs,
            executor=self.executor,
            dispatcher=TridentDispatcher(CostModel(self.specs), WORKERS),
            planner=self.wish,
            clock=SystemClock(),
            spans=StageSpans(build_provider()),
        )

    def stages_of(self, model: int) -> frozenset[StageKey]:
        return frozenset(self.specs[model].stages)

    def switch(self, first: int, second: int) -> None:
        self.wish.set(self.stages_of(first), self.stages_of(second))
        self.core._wake.set()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def switching(model_folder: Callable[[str], Path]) -> AsyncIterator[Switching]:
    running = Switching([open_pipeline(model_folder(family)) for family in FAMILIES])
    await running.core.start()
    try:
        async with asyncio.timeout(240):
            while running.core.readiness():
                await asyncio.sleep(0.05)
        yield running
    finally:
        await running.core.close()


def request(number: int, family: str) -> GenerationRequest:
    return GenerationRequest(
        id=RequestId(f"{family}-{number}"),
        model=ModelId(family),
        prompt="a red circle",
        shape=Shape(64, 64),
        steps=4,
        guidance_scale=3.5,
        seed=7,
        arrival_s=0.0,
        deadline_s=1.0,
    )


async def test_pictures_are_the_same_under_placements_that_are_superseded_half_way(
    switching: Switching,
) -> None:
    core = switching.core
    undisturbed = {
        family: (await core.generate(request(0, family))).artifacts[0].content
        for family in FAMILIES
    }
    work = [
        asyncio.create_task(core.generate(request(n, family)))
        for n in range(1, 6)
        for family in FAMILIES
    ]
    for pair in ((1, 0), (0, 1), (1, 0), (0, 1), (1, 0), (0, 1)):
        switching.switch(*pair)
        await asyncio.sleep(0.05)
        core.check_integrity()
    async with asyncio.timeout(240):
        results = await asyncio.gather(*work)
    for index, result in enumerate(results):
        assert result.artifacts[0].content == undisturbed[FAMILIES[index % 2]]
        assert {timing.attempt for timing in result.timeline} == {1}
    switching.executor._loads.host.check_integrity()


async def test_every_stage_was_read_from_its_files_once(switching: Switching) -> None:
    host = switching.executor._loads.host
    assert all(host.holds(stage) for spec in switching.specs for stage in spec.stages)
    assert len(list((switching.executor._folder.path / "weights").iterdir())) == 2 * 2 * 3


async def test_a_load_that_is_cancelled_leaves_its_device_as_it_was(switching: Switching) -> None:
    device, stage = DEVICES[0], switching.specs[0].stages[1]
    async with asyncio.timeout(240):
        await switching.executor.unload(device, stage)
        load = asyncio.create_task(switching.executor.load(device, stage))
        await asyncio.sleep(0)
        load.cancel()
        with pytest.raises(asyncio.CancelledError):
            await load
        await switching.executor.load(device, stage)
    switching.executor._loads.host.check_integrity()
