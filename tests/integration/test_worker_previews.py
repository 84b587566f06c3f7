"""Previews on real worker processes: pictures of what is coming, and the same bytes at the end."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from engine import Along, Preview, Shape
from tests.support.live_engine import LiveEngine, a_picture, live_engine

SHAPES = Path(__file__).parents[2] / "models" / "shapes"
STEPS = {"flux": 24, "sd3": 24, "sd": 24, "shapes": 24}
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model_folder: Callable[[str], Path]) -> AsyncIterator[LiveEngine]:
    folders = [*(model_folder(family) for family in ("flux", "sd3", "sd")), SHAPES]
    async with live_engine(folders, devices=2) as running:
        yield running
        await running.idle()


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)), dtype=float)


@pytest.mark.parametrize("model", STEPS)
async def test_watching_changes_no_byte_and_shows_what_is_coming(
    engine: LiveEngine, model: str
) -> None:
    side = 64
    request = a_picture(
        f"plain-{model}", model, steps=STEPS[model], shape=Shape(side, side), guidance_scale=2.0
    )
    plain = await engine.core.generate(request)
    seen: list[Preview] = []
    watched = await engine.core.generate(
        a_picture(
            f"watched-{model}",
            model,
            steps=STEPS[model],
            shape=Shape(side, side),
            guidance_scale=2.0,
            previews=3,
        ),
        along=Along(show=seen.append),
    )
    final = plain.artifacts[0].content
    assert watched.artifacts[0].content == final
    assert seen
    assert [p.index for p in seen] == sorted({p.index for p in seen})
    shown = [pixels(preview.artifact.content) for preview in seen]
    assert {picture.shape for picture in shown} == {(side, side, 3)}
    assert all(preview.artifact.content != final for preview in seen)
    if model == "shapes":  # a trained model gets nearer to its picture, step by step
        distances = [float(np.abs(picture - pixels(final)).mean()) for picture in shown]
        assert distances == sorted(distances, reverse=True)
        assert distances[-1] < 20


async def test_a_worker_that_dies_leaves_no_latent_behind(engine: LiveEngine) -> None:
    pids = engine.executor.process_ids()

    def kill(task: str, step: int) -> None:
        if step == 10:
            engine.on_step = lambda _task, _step: None
            device = next(
                run.assignment.team[0]
                for run in engine.core._launcher.running()
                if run.assignment.task.id == task
            )
            engine.executor._slots[device].kill("a test wants it dead")

    engine.on_step = kill
    seen: list[Preview] = []
    await engine.core.generate(
        a_picture("killed", "sd", steps=24, previews=3), along=Along(show=seen.append)
    )
    await engine.ready()
    assert engine.executor.process_ids() != pids
    assert [p.index for p in seen] == sorted({p.index for p in seen})
