"""Nodes killed at random while requests of several outputs run: none is lost, none differs by a bit."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import GenerationResult
from tests.integration.test_nodes import spanning
from tests.support.live_engine import a_picture
from tests.support.nodes import running_nodes, shared_nursery

REQUESTS, OUTPUTS, AT_ONCE, EVERY_STEPS = 60, 3, 6, 150


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers
async def test_requests_survive_nodes_that_are_killed_at_random(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model, chance, done = model_folder("sd"), random.Random(5), asyncio.Event()
    kills: list[str] = []
    with shared_nursery(tmp_path), running_nodes(2, [model], tmp_path) as nodes:
        async with spanning(tmp_path, model, nodes) as engine:
            await engine.reach(lambda: len(engine.memories) == 3 and not engine.engine.readiness())
            steps = 0
            listener = engine.core.listener
            note = listener.task_progressed

            def count(task: str, step: int, of: int) -> None:
                nonlocal steps
                note(task, step, of)  # type: ignore[arg-type]
                steps += 1

            listener.task_progressed = count  # type: ignore[method-assign]

            async def kill_now_and_then() -> None:
                until = EVERY_STEPS
                while not done.is_set():
                    await asyncio.sleep(0.01)
                    if steps >= until:
                        node = chance.choice(nodes)
                        node.kill()
                        kills.append(node.address)
                        node.start()
                        until = steps + EVERY_STEPS

            turn = asyncio.Semaphore(AT_ONCE)

            async def one(number: int) -> GenerationResult:
                async with turn:
                    wish = a_picture(f"r{number}", steps=12, n=OUTPUTS, prompt=f"a {number % 5}")
                    return await engine.engine.generate(wish)

            killing = asyncio.create_task(kill_now_and_then())
            try:
                async with asyncio.timeout(900):
                    results = await asyncio.gather(*map(one, range(REQUESTS)))
            finally:
                done.set()
                await killing
    assert len(kills) >= 5
    for number, result in enumerate(results):
        undisturbed = results[number % 5]
        assert [a.sha256 for a in result.artifacts] == [a.sha256 for a in undisturbed.artifacts]
    attempts = [timing.attempt for result in results for timing in result.timeline]
    assert max(attempts) > 1, "nothing was tried again"
