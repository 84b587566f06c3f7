"""The planner and dispatcher on real workers whose memory cannot hold all stages at once."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import GenerationRequest, ModelId, RequestId, Shape, StageKey, SystemClock
from engine.types import StageKind
from gateway.embedded import EmbeddedEngine
from gateway.runner import Telemetry
from gateway.settings import Settings
from observability.meters import Meters
from observability.monitor import StageMonitor
from observability.tracing import build_provider
from schedulers.planner.knobs import PlannerKnobs
from schedulers.sim.audit import audit
from schedulers.sim.events import (
    EvictEvent,
    FinishEvent,
    LoadEvent,
    RejectEvent,
    RunEvent,
    RunOutcome,
    SimEvent,
    SwitchEvent,
    read_events,
)

WINDOW_S = 2.0
IN_FLIGHT = 8
# Switch whenever it gains: how idle the devices are depends on what else the machine does.
EAGER = PlannerKnobs(cooldown_s=WINDOW_S, comfort=1e9, min_requests=8)
SHAPES = (Shape(32, 32), Shape(64, 64), Shape(64, 96))
# An encode needs 16.8 MB beside the weights: 4.5 MB of sd or 2.5 MB of flux, never both.
MEMORY_BYTES = 22_000_000
PATIENCE_S = 300.0  # for each phase
LONGEST_GAP_S = 30.0  # between completions; both are for a machine that does much else


class Crowd:
    """Eight callers who want the next output as soon as they have one."""

    def __init__(self, engine: EmbeddedEngine) -> None:
        self.engine, self.model = engine, ModelId("sd")
        self._rng, self._clock, self._ids = random.Random(5), SystemClock(), itertools.count()
        self.going_on = True

    def _wish(self) -> GenerationRequest:
        now_s = self._clock.now()
        return GenerationRequest(
            id=RequestId(f"r{next(self._ids)}"),
            model=self.model,
            prompt="a red circle",
            shape=self._rng.choice(SHAPES),
            steps=self._rng.choice((2, 4)),
            guidance_scale=2.0,
            seed=1,
            arrival_s=now_s,
            deadline_s=now_s + 2 * PATIENCE_S,
            n=self._rng.choice((1, 1, 1, 2)),
        )

    async def want(self) -> None:
        while self.going_on:
            await self.engine.generate(self._wish())


def settings(folders: list[Path], tmp_path: Path) -> Settings:
    return Settings(
        models=tuple(folders),
        data_dir=tmp_path,
        devices=4,
        threads_per_device=1,
        device_memory_bytes=MEMORY_BYTES,
        events_file=tmp_path / "events.jsonl",
        planner_window_s=WINDOW_S,
    )


def telemetry() -> Telemetry:
    monitor = StageMonitor(window_s=WINDOW_S)
    return Telemetry(build_provider(processors=[monitor]), monitor, Meters())


async def ready(engine: EmbeddedEngine) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while engine.readiness():
            await asyncio.sleep(0.05)


async def reach(enough: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not enough():
            await asyncio.sleep(0.1)


def holders(engine: EmbeddedEngine, model: str) -> int:
    """Return how many devices should hold a model's diffuse stage."""
    assert engine._engine is not None
    wanted = engine._engine.core.cluster.placement.stages.values()
    stage = StageKey(ModelId(model), StageKind.DIFFUSE)
    return sum(stage in stages for stages in wanted)


def finishes(events: list[SimEvent]) -> list[float]:
    return [event.t for event in events if isinstance(event, FinishEvent)]


def after_last_switch(events: list[SimEvent]) -> list[SimEvent]:
    last = max(i for i, event in enumerate(events) if isinstance(event, SwitchEvent))
    return events[last:]


@pytest.mark.slow
async def test_a_shift_of_the_mix_is_followed_without_a_pause_a_loss_or_a_byte_too_many(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folders, events = [model_folder("sd"), model_folder("flux")], list[SimEvent]()
    engine = EmbeddedEngine(settings(folders, tmp_path), telemetry(), events.append, EAGER)
    await engine.start()
    try:
        await ready(engine)
        crowd = Crowd(engine)
        async with asyncio.TaskGroup() as callers:
            for _ in range(IN_FLIGHT):
                callers.create_task(crowd.want())
            await reach(lambda: holders(engine, "sd") == 3 and len(finishes(events)) > 20)
            crowd.model = ModelId("flux")
            await reach(lambda: holders(engine, "flux") == 3)
            done = len(finishes(events))
            await reach(lambda: len(finishes(events)) > done + 20)
            crowd.going_on = False
    finally:
        await engine.close()
    assert audit(read_events(tmp_path / "events.jsonl")) == []
    assert not any(isinstance(event, RejectEvent) for event in events)
    failed = [e for e in events if isinstance(e, RunEvent) and e.outcome is RunOutcome.FAILED]
    assert failed == []
    moved = [e for e in after_last_switch(events) if isinstance(e, LoadEvent | EvictEvent)]
    assert moved, "weights follow the placement"
    gaps = [b - a for a, b in itertools.pairwise(finishes(events))]
    assert max(gaps) < LONGEST_GAP_S
