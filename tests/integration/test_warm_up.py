"""A quick profile at the first start: measured on real workers, kept, and in nobody's way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine import ModelId
from engine.types import StageKind
from gateway.embedded import EmbeddedEngine
from gateway.runner import Telemetry
from gateway.settings import Settings
from gateway.warm_up import WarmUp
from observability.meters import Meters
from observability.monitor import StageMonitor
from observability.tracing import build_provider
from schedulers.profile import load_profile
from schedulers.profiles.build import render
from schedulers.sim.audit import audit
from schedulers.sim.events import RejectEvent, SimEvent
from tests.support.live_engine import a_picture

SD = ModelId("sd")


def settings_of(data_dir: Path, folder: Path, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "models": (folder,),
        "data_dir": data_dir,
        "devices": 2,
        "threads_per_device": 1,
        "warm_up_degree": 2,
        "step_batch": 2,
    }
    return Settings(**(values | changes))


@asynccontextmanager
async def started(settings: Settings, events: list[SimEvent]) -> AsyncIterator[EmbeddedEngine]:
    monitor = StageMonitor(window_s=60)
    telemetry = Telemetry(build_provider(processors=[monitor]), monitor, Meters())
    engine = EmbeddedEngine(settings, telemetry, events.append)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def until_warm(engine: EmbeddedEngine) -> None:
    assert engine._warming is not None
    async with asyncio.timeout(240):
        await engine._warming


async def until_one_made_way(engine: EmbeddedEngine, events: list[SimEvent]) -> None:
    """Ask for pictures later and later into a warm-up, until one is caught under way."""
    warm_up = engine._bench.warm_up
    assert warm_up is not None
    for attempt in range(20):
        async with asyncio.timeout(60):
            while warm_up._running is None:
                await asyncio.sleep(0)
        await asyncio.sleep(0.002 * attempt)
        picture = await engine.generate(a_picture(f"asked-{attempt}", steps=2))
        assert len(picture.artifacts) == 1
        if any(isinstance(event, RejectEvent) for event in events):
            return
    pytest.fail("No warm-up made way for a request.")


async def test_a_first_start_measures_what_it_serves_and_the_next_one_knows_it(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    settings, events = settings_of(tmp_path, model_folder("sd")), list[SimEvent]()
    async with started(settings, events) as engine:
        await until_one_made_way(engine, events)
        await until_warm(engine)
        cost = engine._bench.cost
        assert cost.degrees(SD) == (1, 2)
        assert cost.knows(a_picture("another"))
    assert audit(events) == []
    diffuse = load_profile(str(tmp_path / "warm-up.json")).models[SD].stages[StageKind.DIFFUSE]
    assert {(entry.degree, entry.batch) for entry in diffuse.entries} == {(1, 1), (1, 2), (2, 1)}

    events.clear()
    async with started(settings, events) as engine:
        assert engine._bench.cost.degrees(SD) == (1, 2)
        await until_warm(engine)
    assert not [event for event in events if event.__class__.__name__ == "RunEvent"]

    specs = tuple(engine.specs.values())
    assert WarmUp(settings, specs, 0).known is not None
    assert WarmUp(msgspec.structs.replace(settings, devices=3), specs, 0).known is None
    place = tmp_path / "warm-up.json"
    kept = load_profile(str(place))
    assert kept.measurement is not None
    elsewhere = msgspec.structs.replace(kept.measurement, machine="another")
    place.write_text(render(msgspec.structs.replace(kept, measurement=elsewhere)))
    assert WarmUp(settings, specs, 0).known is None
    place.write_text("no profile")
    assert WarmUp(settings, specs, 0).known is None


async def test_without_a_degree_nothing_is_measured(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    engine_settings = settings_of(tmp_path, model_folder("sd"), warm_up_degree=0)
    monitor = StageMonitor(window_s=60)
    telemetry = Telemetry(build_provider(processors=[monitor]), monitor, Meters())
    assert EmbeddedEngine(engine_settings, telemetry)._bench.warm_up is None
