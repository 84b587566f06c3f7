"""The product's engine as a server holds it, planner and event file included, without the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from engine import EngineCore
from engine.executors.local import LocalExecutor
from engine.executors.watching import WatchedExecutor
from gateway.embedded import EmbeddedEngine
from gateway.runner import Telemetry
from gateway.settings import Settings
from observability.meters import Meters
from observability.monitor import StageMonitor
from observability.tracing import build_provider
from schedulers.planner.knobs import PlannerKnobs
from schedulers.sim.audit import audit
from schedulers.sim.events import SimEvent, read_events

PATIENCE_S = 300.0


class Held:
    """An engine that runs, and what it tells.

    Attributes:
        events: everything so far; the file has the same.
    """

    def __init__(self, settings: Settings, planner: PlannerKnobs | None = None) -> None:
        window_s = settings.planner_window_s
        self._file = settings.events_file
        self.events: list[SimEvent] = []
        monitor = StageMonitor(window_s=window_s)
        telemetry = Telemetry(build_provider(processors=[monitor]), monitor, Meters())
        self.engine = EmbeddedEngine(settings, telemetry, self.events.append, planner)

    @property
    def core(self) -> EngineCore:
        assert self.engine._engine is not None
        return self.engine._engine.core

    @property
    def executor(self) -> LocalExecutor:
        watched = self.core._executor
        assert isinstance(watched, WatchedExecutor)
        assert isinstance(watched._inner, LocalExecutor)
        return watched._inner

    async def reach(self, enough: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not enough():
                await asyncio.sleep(0.05)

    def problems(self) -> list[str]:
        """Return what the auditor says of the event file; asked after the end."""
        assert self._file is not None
        return audit(read_events(self._file))

    async def expect_nothing_left(self) -> None:
        """Wait until no team works, and audit the ledgers and the folder of hand-offs."""
        slots, core = self.executor._slots.values(), self.core
        await self.reach(
            lambda: (
                not core.cluster.teams.busy
                and not any(slot.mailbox.is_waited_for for slot in slots)
            )
        )
        core.check_integrity()
        core.embeddings.clear()
        assert core._requests == {}
        assert core._launcher.running() == ()
        assert self.executor._handoffs.used_bytes == 0
        assert list(self.executor._handoffs.folder.iterdir()) == []


def settings_for(folders: Sequence[Path], data_dir: Path, **settings: Any) -> Settings:
    """Return settings of an engine of one thread per device that writes its history."""
    return Settings(
        models=tuple(folders),
        data_dir=data_dir,
        events_file=data_dir / "events.jsonl",
        threads_per_device=1,
        **settings,
    )


@asynccontextmanager
async def embedded_engine(
    folders: Sequence[Path],
    data_dir: Path,
    *,
    planner: PlannerKnobs | None = None,
    **settings: Any,
) -> AsyncIterator[Held]:
    """Run an engine of one thread per device until the block ends."""
    held = Held(settings_for(folders, data_dir, **settings), planner)
    await held.engine.start()
    try:
        await held.reach(lambda: not held.engine.readiness())
        yield held
    finally:
        await held.engine.close()
