"""A diffuse that saves as it goes: a worker that dies costs the steps since the last save."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.messages import Saving
from engine.types import DeviceId, TaskId
from tests.support.live_engine import LiveEngine, a_picture, live_engine

EVERY, STEPS, KILL_AT = 4, 60, 30


def runs_on(engine: LiveEngine, task: TaskId) -> DeviceId:
    running = engine.core._launcher.running()
    return next(r.assignment.team[0] for r in running if r.assignment.task.id == task)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers
async def test_a_killed_worker_costs_at_most_the_steps_between_two_saves_and_no_bit(
    model_folder: Callable[[str], Path],
) -> None:
    killed: list[int] = []

    async with live_engine([model_folder("sd")], 2, Saving(EVERY, 0.0)) as engine:
        undisturbed = await engine.core.generate(a_picture("undisturbed", steps=STEPS))

        def kill_once(task: TaskId, step: int) -> None:
            if step >= KILL_AT and not killed:
                killed.append(step)
                pid = engine.executor.process_ids()[runs_on(engine, task)]
                os.kill(pid, signal.SIGKILL)

        engine.on_step = kill_once
        engine.steps.clear()
        async with asyncio.timeout(300):
            result = await engine.core.generate(a_picture("killed", steps=STEPS))
        first = [step for task, step in engine.steps if task.endswith("/1")]
        again = [step for task, step in engine.steps if task.endswith("/2")]
        await engine.idle()
    assert result.artifacts == undisturbed.artifacts
    assert again[-1] == STEPS
    # The last save may have been made and not yet been told: then the one before it counts.
    assert 0 <= first[-1] + 1 - again[0] <= 2 * EVERY
    assert again[0] > EVERY
