"""The real core loop on a virtual clock with the fake executor, ready to be driven by a test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from engine.core import EngineCore
from engine.executors.fake import FakeExecutor
from engine.messages import Saving
from engine.pipelines import PipelineSpec
from engine.types import (
    DeviceInfo,
    GenerationRequest,
    GenerationResult,
    StageKey,
    StageKind,
    StageTask,
)
from observability.monitor import StageMonitor
from observability.tracing import StageSpans, build_provider
from schedulers.cost import CostModel
from schedulers.dispatch.knobs import WORKERS
from schedulers.dispatch.trident import TridentDispatcher
from schedulers.sim.clock import VirtualClock
from schedulers.static import StaticPlanner
from tests.support.builders import a_spec, devices

STAGE_SECONDS = {StageKind.ENCODE: 1.0, StageKind.DIFFUSE: 10.0, StageKind.DECODE: 2.0}


@dataclass
class SimulatedEngine:
    core: EngineCore
    executor: FakeExecutor
    spans: InMemorySpanExporter
    monitor: StageMonitor


def simulated_engine(
    infos: Sequence[DeviceInfo] | None = None,
    *,
    specs: Sequence[PipelineSpec] | None = None,
    duration_s: Callable[[StageTask], float] = lambda task: STAGE_SECONDS[task.stage.kind],
    load_s: Callable[[StageKey], float] = lambda _stage: 0.0,
    max_requests: int = 64,
    embedding_bytes: int = 0,
    saving: Saving | None = None,
    restart_s: float = 1.0,
) -> SimulatedEngine:
    specs = specs or [a_spec()]
    clock, exporter, monitor = VirtualClock(), InMemorySpanExporter(), StageMonitor(window_s=1000)
    executor = FakeExecutor(
        infos or devices(3),
        clock=clock,
        duration_s=lambda assignment: duration_s(assignment.task),
        load_s=lambda stage, _from_peer: load_s(stage),
        restart_s=restart_s,
        saving=saving,
    )
    provider = build_provider(processors=[SimpleSpanProcessor(exporter), monitor])
    core = EngineCore(
        specs,
        executor=executor,
        dispatcher=TridentDispatcher(CostModel(specs), WORKERS),
        planner=StaticPlanner(specs),
        clock=clock,
        spans=StageSpans(provider),
        monitor=monitor,
        max_requests=max_requests,
        embedding_bytes=embedding_bytes,
    )
    return SimulatedEngine(core, executor, exporter, monitor)


async def finish(sim: SimulatedEngine, *requests: GenerationRequest) -> list[GenerationResult]:
    """Start the engine, run all requests at once, and audit what is left."""
    await sim.core.start()
    results = await asyncio.gather(*(sim.core.generate(r) for r in requests))
    await asyncio.sleep(0)
    sim.core.check_integrity()
    assert sim.executor.alive == {}
    await sim.core.close()
    return results
