"""A running job that is cancelled or deleted over HTTP gives its team back within one step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from engine.types import Assignment, TaskId
from gateway.app import create_app
from tests.gateway.conftest import living
from tests.support.embedded import Held, settings_for

STEPS = 100
WISH = {
    "model": "animatediff", "prompt": "a red circle", "size": "128x128", "seconds": "2",
    "num_inference_steps": STEPS,
}  # fmt: skip


@asynccontextmanager
async def served(folder: Path, data_dir: Path) -> AsyncIterator[tuple[Held, httpx.AsyncClient]]:
    settings = settings_for([folder], data_dir, devices=1, drain_s=0.01)
    held = Held(settings)
    app = create_app(settings, engine=held.engine)
    transport = httpx.ASGITransport(cast("Any", app))  # litestar's scope types are narrower
    async with (
        living(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        await held.reach(lambda: held.engine._engine is not None and not held.engine.readiness())
        yield held, client


class Watch:
    """Counts denoise steps, and those that came after the engine was told to stop."""

    def __init__(self, held: Held) -> None:
        self.steps, self.at_cancel = 0, 0
        listener, executor = held.core.listener, held.executor
        self._note, listener.task_progressed = listener.task_progressed, self._step  # type: ignore[method-assign]
        self._cancel, executor.cancel = executor.cancel, self._stop  # type: ignore[method-assign]

    def _step(self, task: TaskId, step: int, steps: int) -> None:
        self._note(task, step, steps)
        self.steps = step

    def _stop(self, assignment: Assignment) -> None:
        self.at_cancel = self.steps
        self._cancel(assignment)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers
async def test_a_cancelled_or_deleted_job_frees_its_team_within_one_step(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    async with served(model_folder("animatediff"), tmp_path) as (held, client):
        for delete in (False, True):
            watch = Watch(held)
            video = (await client.post("/v1/videos", json=WISH)).json()["id"]
            await held.reach(lambda watch=watch: watch.steps >= 2)
            if delete:
                answer = await client.delete(f"/v1/videos/{video}")
            else:
                answer = await client.post(f"/v1/jobs/{video}/cancel")
            assert answer.status_code == 200, answer.text
            await held.reach(lambda: not held.core.cluster.teams.busy)
            assert 2 <= watch.at_cancel <= watch.steps < STEPS
            assert watch.steps - watch.at_cancel <= 1
            await held.expect_nothing_left()
            if not delete:
                async with asyncio.timeout(60):
                    while (await client.get(f"/v1/jobs/{video}")).json()["status"] != "cancelled":
                        await asyncio.sleep(0.05)
