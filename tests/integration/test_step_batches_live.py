"""Requests that share denoise steps on a real worker: pictures, a cancelled one, what is left."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from engine import GenerationResult
from engine.types import TaskId
from tests.support.live_engine import LiveEngine, a_picture, live_engine

STEPS = 30


def pixels(result: GenerationResult) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(result.artifacts[0].content))).astype(int)


async def crowd(engine: LiveEngine, name: str) -> list[asyncio.Task[GenerationResult]]:
    """Send four pictures while the only device is busy with another, which is awaited."""
    busy = asyncio.create_task(engine.core.generate(a_picture(f"{name}-busy", steps=STEPS)))
    await engine.until(lambda: bool(engine.core._launcher.running()))
    four = [
        asyncio.create_task(
            engine.core.generate(
                a_picture(f"{name}-{n}", seed=n, steps=STEPS, guidance_scale=2 + n)
            )
        )
        for n in range(4)
    ]
    await busy
    return four


def batches(engine: LiveEngine, diffuses: list[int]) -> None:
    """Note the size of every diffuse that has a first step."""

    def note(task: TaskId, step: int) -> None:
        flight = engine.core._launcher._flights.get(task)
        if step == 1 and flight is not None and not flight.view().step > 1:
            diffuses.append(len(flight.assignment.tasks))

    engine.on_step = note


async def test_requests_share_steps_and_a_cancelled_one_leaves_the_others(
    model_folder: Callable[[str], Path],
) -> None:
    folders = [model_folder("sd")]
    async with live_engine(folders, 1) as engine:
        alone = [pixels(await task) for task in await crowd(engine, "alone")]
        await engine.idle()
    async with live_engine(folders, 1, step_batch=4) as engine:
        sizes: list[int] = []
        batches(engine, sizes)
        together = [pixels(await task) for task in await crowd(engine, "shared")]
        await engine.idle()
        assert max(sizes) == 4
        assert all(np.abs(a - b).max() <= 1 for a, b in zip(together, alone, strict=True))

        sizes.clear()
        four = await crowd(engine, "cancelled")
        await engine.until(lambda: 4 in sizes)
        four[0].cancel()  # the one that gave the launch its name
        kept = await asyncio.gather(*four, return_exceptions=True)
        assert isinstance(kept[0], asyncio.CancelledError)
        others = [pixels(result) for result in kept[1:] if isinstance(result, GenerationResult)]
        assert all(np.abs(a - b).max() <= 1 for a, b in zip(others, alone[1:], strict=True))
        await engine.idle()
