"""All stages of a request as one launch of a real worker: the same picture, the same retries."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from engine import (
    EngineCore,
    GenerationRequest,
    GenerationResult,
    ModelId,
    RequestId,
    Shape,
    SystemClock,
    open_pipeline,
)
from engine.executors.local import LocalExecutor
from engine.types import DeviceId, StageKind
from observability.tracing import StageSpans, build_provider
from schedulers.cost import CostModel
from schedulers.dispatch.knobs import Knobs
from schedulers.dispatch.trident import TridentDispatcher
from schedulers.static import StaticPlanner

DEVICE = DeviceId("cpu:0")
pytestmark = pytest.mark.asyncio(loop_scope="module")


class OneWorker:
    """An engine whose only device holds all stages."""

    def __init__(self, folder: Path) -> None:
        self.specs = [open_pipeline(folder)]
        self.executor = LocalExecutor(self.specs, devices=1, threads=1)
        self.core = EngineCore(
            self.specs,
            executor=self.executor,
            dispatcher=self.dispatcher(merge=True),
            planner=StaticPlanner(self.specs),
            clock=SystemClock(),
            spans=StageSpans(build_provider()),
        )

    def dispatcher(self, *, merge: bool) -> TridentDispatcher:
        return TridentDispatcher(CostModel(self.specs), Knobs(batch=1, resize=False, merge=merge))

    async def draw(self, name: str, steps: int = 40) -> GenerationResult:
        async with asyncio.timeout(240):
            return await self.core.generate(
                GenerationRequest(
                    id=RequestId(name),
                    model=ModelId("sd"),
                    prompt="a red circle",
                    shape=Shape(64, 64),
                    steps=steps,
                    guidance_scale=3.5,
                    seed=7,
                    arrival_s=0.0,
                    deadline_s=1.0,
                    tenant=name,  # prompts of another tenant are encoded anew
                )
            )

    async def ready(self) -> None:
        async with asyncio.timeout(300):
            while self.core.readiness():
                await asyncio.sleep(0.05)

    def stage(self) -> StageKind | None:
        running = self.core._launcher.running()
        return running[0].assignment.task.stage.kind if running else None

    async def until(self, kind: StageKind) -> None:
        async with asyncio.timeout(240):
            while self.stage() is not kind:
                await asyncio.sleep(0.001)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(model_folder: Callable[[str], Path]) -> AsyncIterator[OneWorker]:
    running = OneWorker(model_folder("sd"))
    await running.core.start()
    try:
        await running.ready()
        yield running
    finally:
        await running.core.close()


async def test_a_merged_launch_draws_what_single_launches_draw(worker: OneWorker) -> None:
    merged = await worker.draw("merged")
    worker.core._dispatcher = worker.dispatcher(merge=False)
    single = await worker.draw("single")
    worker.core._dispatcher = worker.dispatcher(merge=True)
    assert merged.artifacts[0].content == single.artifacts[0].content
    assert [timing.stage for timing in merged.timeline] == list(StageKind)


async def test_a_worker_killed_in_a_merged_launch_costs_the_stage_it_was_in(
    worker: OneWorker,
) -> None:
    expected = await worker.draw("undisturbed", steps=120)
    work = asyncio.create_task(worker.draw("killed", steps=120))
    await worker.until(StageKind.DIFFUSE)
    os.kill(worker.executor.process_ids()[DEVICE], signal.SIGKILL)
    result = await work
    assert [timing.attempt for timing in result.timeline] == [1, 2, 1]
    assert result.artifacts[0].content == expected.artifacts[0].content
    await worker.ready()


async def test_a_merged_launch_may_be_paused_and_begun_again_at_once(worker: OneWorker) -> None:
    expected = await worker.draw("never paused", steps=120)
    work = asyncio.create_task(worker.draw("paused", steps=120))
    for _pause in range(20):
        await worker.until(StageKind.DIFFUSE)
        [running] = worker.core._launcher.running()
        worker.core._launcher._stop_at_boundary(running.assignment.task.id)
        async with asyncio.timeout(60):
            while running.assignment.task.id in worker.core._launcher._flights:
                await asyncio.sleep(0)
    result = await work
    assert result.artifacts[0].content == expected.artifacts[0].content
    assert len(result.timeline) == 23
    assert [t.attempt for t in result.timeline if t.stage is not StageKind.DIFFUSE] == [1, 1]


async def test_a_cancelled_merged_launch_frees_its_worker_and_leaves_no_file(
    worker: OneWorker,
) -> None:
    for kind in (StageKind.ENCODE, StageKind.DIFFUSE):
        work = asyncio.create_task(worker.draw(f"cancelled in {kind}", steps=200))
        await worker.until(kind)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        async with asyncio.timeout(60):
            while worker.core.cluster.teams.busy:
                await asyncio.sleep(0.01)
    worker.core.check_integrity()
    assert len((await worker.draw("after")).artifacts) == 1
