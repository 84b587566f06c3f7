"""The event file of a live engine where prompts are asked for again: each encode is told once."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.types import StageKind
from schedulers.sim.events import ArriveEvent, RunEvent
from tests.support.embedded import embedded_engine
from tests.support.live_engine import a_picture


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers
async def test_an_encode_that_did_not_run_is_neither_missing_nor_told_twice(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    async with embedded_engine([model_folder("sd")], tmp_path, devices=2) as held:

        async def draw(name: str, prompt: str, n: int = 1) -> None:
            wish = {"prompt": prompt, "n": n, "steps": 2, "arrival_s": time.time()}
            await held.engine.generate(a_picture(name, **wish))

        await asyncio.gather(draw("a", "a star"), draw("b", "a star"), draw("c", "a ring", 2))
        await asyncio.gather(draw("d", "a star", 2), draw("e", "a ring"), draw("f", "a dot"))
        await held.expect_nothing_left()
        hits = held.core.embeddings.hits
    assert held.problems() == []
    kept = {e.request for e in held.events if isinstance(e, ArriveEvent) and e.encoded}
    arrived = {e.request for e in held.events if isinstance(e, ArriveEvent)}
    encoded = Counter(
        request
        for event in held.events
        if isinstance(event, RunEvent) and event.stage is StageKind.ENCODE
        for request in event.requests
    )
    assert kept == {"d", "d/1", "e"}
    assert hits == 2
    assert encoded == Counter(arrived - kept)
