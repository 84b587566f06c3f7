"""The event file of a live engine: each encode is told once, and every request ends."""

from __future__ import annotations

import asyncio
import errno
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.types import StageKind
from schedulers.sim.events import ArriveEvent, RejectEvent, RunEvent
from tests.support.embedded import embedded_engine
from tests.support.live_engine import a_picture


async def no_room(*_wish: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers
async def test_an_encode_that_did_not_run_is_neither_missing_nor_told_twice(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with embedded_engine([model_folder("sd")], tmp_path, devices=2) as held:

        async def draw(name: str, prompt: str, n: int = 1) -> None:
            wish = {"prompt": prompt, "n": n, "steps": 2, "arrival_s": time.time()}
            await held.engine.generate(a_picture(name, **wish))

        await asyncio.gather(draw("a", "a star"), draw("b", "a star"), draw("c", "a ring", 2))
        await asyncio.gather(draw("d", "a star", 2), draw("e", "a ring"), draw("f", "a dot"))
        monkeypatch.setattr(held.core, "generate", no_room)
        with pytest.raises(OSError, match="No space left"):
            await draw("full", "a star")
        await held.expect_nothing_left()
        hits = held.core.embeddings.hits
    assert held.problems() == []
    kept = {e.request for e in held.events if isinstance(e, ArriveEvent) and e.encoded}
    rejected = {e.request: e.reason for e in held.events if isinstance(e, RejectEvent)}
    arrived = {e.request for e in held.events if isinstance(e, ArriveEvent)} - rejected.keys()
    encoded = Counter(
        request
        for event in held.events
        if isinstance(event, RunEvent) and event.stage is StageKind.ENCODE
        for request in event.requests
    )
    assert kept == {"d", "d/1", "e", "full"}
    assert rejected == {"full": "[Errno 28] No space left on device"}
    assert hits == 2
    assert encoded == Counter(arrived - kept)
