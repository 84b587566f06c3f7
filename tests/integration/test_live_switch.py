"""The planner and dispatcher on real workers whose memory cannot hold all stages at once."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import GenerationRequest, ModelId, RequestId, Shape, StageKey, SystemClock
from engine.ports import Executor
from engine.types import DeviceId, StageKind
from gateway.embedded import EmbeddedEngine
from gateway.runner import Telemetry
from gateway.settings import Settings
from observability.meters import Meters
from observability.monitor import StageMonitor
from observability.tracing import build_provider
from schedulers.planner.knobs import PlannerKnobs
from schedulers.sim.audit import audit
from schedulers.sim.events import (
    ArriveEvent,
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
PATIENCE_S = 300.0  # for each phase, on a machine that does much else
LOAD_S = 0.5  # as if models were large: while weights move there is time for completions
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "orange", "purple")
OFTEN = 0.85  # the share of the model that most callers want


class Crowd:
    """Eight callers who want the next output as soon as they have one."""

    def __init__(self, engine: EmbeddedEngine) -> None:
        self.engine, self.most_want, self.others_want = engine, ModelId("sd"), ModelId("flux")
        self._rng, self._clock, self._ids = random.Random(5), SystemClock(), itertools.count()
        self.going_on = True

    def _wish(self) -> GenerationRequest:
        now_s, rng = self._clock.now(), self._rng
        return GenerationRequest(
            id=RequestId(f"r{next(self._ids)}"),
            model=self.most_want if rng.random() < OFTEN else self.others_want,
            prompt=f"a {rng.choice(COLOURS)} circle on {rng.choice(COLOURS)}",
            shape=rng.choice(SHAPES),
            steps=rng.choice((2, 4)),
            guidance_scale=2.0,
            seed=1,
            arrival_s=now_s,
            deadline_s=now_s + 2 * PATIENCE_S,
            n=rng.choice((1, 1, 1, 2)),
        )

    def turn(self) -> None:
        """Let the mix shift."""
        self.most_want, self.others_want = self.others_want, self.most_want

    async def want(self) -> None:
        while self.going_on:
            await self.engine.generate(self._wish())


def slow_to_load(executor: Executor) -> Executor:
    load = executor.load

    async def load_slowly(device: DeviceId, stage: StageKey) -> float:
        await asyncio.sleep(LOAD_S)
        return LOAD_S + await load(device, stage)

    executor.load = load_slowly  # type: ignore[method-assign]
    return executor


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


def switch_loads(events: list[SimEvent]) -> list[LoadEvent]:
    """Return the loads that followed the switch after which most weights moved."""
    after = list[list[LoadEvent]]()
    for event in events:
        if isinstance(event, SwitchEvent):
            after.append([])
        elif isinstance(event, LoadEvent) and after:
            after[-1].append(event)
    return max(after, key=len)


@pytest.mark.slow
async def test_a_shift_of_the_mix_is_followed_without_a_pause_a_loss_or_a_byte_too_many(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folders, events = [model_folder("sd"), model_folder("flux")], list[SimEvent]()
    engine = EmbeddedEngine(
        settings(folders, tmp_path), telemetry(), events.append, EAGER, around=slow_to_load
    )
    await engine.start()
    try:
        await ready(engine)
        crowd = Crowd(engine)
        async with asyncio.TaskGroup() as callers:
            for _ in range(IN_FLIGHT):
                callers.create_task(crowd.want())
            await reach(lambda: holders(engine, "sd") == 3 and len(finishes(events)) > 20)
            crowd.turn()
            await reach(lambda: holders(engine, "flux") == 3)
            done = len(finishes(events))
            await reach(lambda: len(finishes(events)) > done + 20)
            crowd.going_on = False
    finally:
        await engine.close()
    assert audit(read_events(tmp_path / "events.jsonl")) == []
    assert not any(isinstance(event, RejectEvent) for event in events)
    runs = [event for event in events if isinstance(event, RunEvent)]
    assert not [run for run in runs if run.outcome is RunOutcome.FAILED]
    asked = {event.request for event in events if isinstance(event, ArriveEvent)}
    assert len(asked) == len(finishes(events))
    assert any(isinstance(event, EvictEvent) for event in events), "memory holds all stages"
    loads = switch_loads(events)
    during = [t for t in finishes(events) if any(load.start < t < load.end for load in loads)]
    assert during, "requests end while the weights of a new placement arrive"
