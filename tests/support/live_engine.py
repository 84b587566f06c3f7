"""The real core loop with the product's dispatcher on real worker processes, to be disturbed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from engine import EngineCore, GenerationRequest, ModelId, RequestId, Shape, SystemClock
from engine.executors.local import LocalExecutor
from engine.messages import Saving
from engine.pipelines import open_pipeline
from engine.types import TaskId
from observability.tracing import StageSpans, build_provider
from schedulers.cost import CostModel
from schedulers.dispatch.knobs import WORKERS
from schedulers.dispatch.trident import TridentDispatcher
from schedulers.static import EverywherePlanner

DEADLINE_S = 1e12  # no request of these tests is late


class LiveEngine:
    """Worker processes, any of which runs any stage.

    Attributes:
        steps: every denoise step reported so far, with its task.
        on_step: called after each of them.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        devices: int,
        saving: Saving | None = None,
        knobs: dict[str, Any] | None = None,
    ) -> None:
        specs = [open_pipeline(folder) for folder in folders]
        self.executor = LocalExecutor(specs, devices=devices, threads=1, saving=saving)
        self.core = EngineCore(
            specs,
            executor=self.executor,
            dispatcher=TridentDispatcher(
                CostModel(specs), msgspec.structs.replace(WORKERS, **(knobs or {}))
            ),
            planner=EverywherePlanner(specs),
            clock=SystemClock(),
            spans=StageSpans(build_provider()),
        )
        self.steps: list[tuple[TaskId, int]] = []
        self.on_step: Callable[[TaskId, int], None] = lambda _task, _step: None
        listener = self.core.listener
        self._note_step, listener.task_progressed = listener.task_progressed, self._progressed  # type: ignore[method-assign]

    def _progressed(self, task: TaskId, step: int, steps: int) -> None:
        self._note_step(task, step, steps)
        self.steps.append((task, step))
        self.on_step(task, step)

    async def until(self, condition: Callable[[], bool], timeout_s: float = 180) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.005)

    async def ready(self) -> None:
        await self.until(lambda: not self.core.readiness(), timeout_s=240)

    async def idle(self) -> None:
        """Wait until no team works and nothing is loaded, and audit what is left: nothing."""
        slots = self.executor._slots.values()
        await self.until(
            lambda: (
                not self.core.cluster.teams.busy
                and not any(slot.mailbox.is_waited_for for slot in slots)
            )
        )
        self.core.check_integrity()
        assert self.core._requests == {}
        assert self.core._launcher.running() == ()
        assert self.executor._handoffs.used_bytes == 0
        assert list(self.executor._handoffs.folder.iterdir()) == []


@asynccontextmanager
async def live_engine(
    folders: Sequence[Path], devices: int, saving: Saving | None = None, **knobs: Any
) -> AsyncIterator[LiveEngine]:
    engine = LiveEngine(folders, devices, saving, knobs)
    await engine.core.start()
    try:
        await engine.ready()
        yield engine
    finally:
        await engine.core.close()


def a_picture(name: str, model: str = "sd", **changes: Any) -> GenerationRequest:
    values: dict[str, Any] = {
        "id": RequestId(name),
        "model": ModelId(model),
        "prompt": "a red circle",
        "shape": Shape(64, 64),
        "steps": 8,
        "guidance_scale": 3.5,
        "seed": 7,
        "arrival_s": 0.0,
        "deadline_s": DEADLINE_S,
    }
    return GenerationRequest(**(values | changes))
