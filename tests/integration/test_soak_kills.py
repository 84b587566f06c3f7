"""Workers killed at random under load: every request ends, nearly all well, with the same bytes."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import structlog

from engine import EngineError, GenerationRequest, ModelId, RequestId, Shape
from engine.types import Artifact, MediaFormat, TaskId
from tests.support.embedded import Held, embedded_engine

MODELS = Path(__file__).parents[2] / "models"
AT_ONCE = 8
log = structlog.get_logger(__name__)
SHAPES = ModelId("shapes")
Kind = tuple[ModelId, Shape, int]  # the number stands for a prompt
Outcome = tuple[Artifact, ...] | EngineError
KINDS: list[Kind] = [
    *((SHAPES, shape, prompt) for shape in (Shape(64, 64), Shape(96, 64)) for prompt in range(4)),
    (ModelId("motion"), Shape(64, 64, 9), 8),
    (ModelId("motion"), Shape(64, 64, 9), 9),
]
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "orange", "purple", "grey", "pink")
SOME_EMBEDDINGS_BYTES = 700_000  # of four prompts out of ten, so that encodes go on


def request(name: str, kind: Kind) -> GenerationRequest:
    model, shape, prompt = kind
    now_s = time.time()
    return GenerationRequest(
        id=RequestId(name),
        model=model,
        prompt=f"a {COLOURS[prompt]} circle",
        shape=shape,
        steps=14 if model == SHAPES else 12,
        guidance_scale=4.0,
        seed=7,
        arrival_s=now_s,
        deadline_s=now_s + 3600,
        media=MediaFormat.PNG if model == SHAPES else MediaFormat.MP4,
    )


class Killer:
    """Kills a random living worker after every so many denoise steps, up to a number of times.

    By steps rather than seconds, so that a slow machine sees as many kills per request.
    """

    def __init__(self, held: Held, every_steps: int, most: int, seed: int) -> None:
        self._executor, self._every, self._most = held.executor, every_steps, most
        self._random, self._steps = random.Random(seed), 0
        self._killed, self.kills = set[int](), 0
        listener = held.core.listener
        self._note_step, listener.task_progressed = listener.task_progressed, self._note  # type: ignore[method-assign]

    def _note(self, task: TaskId, step: int, steps: int) -> None:
        self._note_step(task, step, steps)
        self._steps += 1
        if self._steps >= self._every and self.kills < self._most and (victims := self._living()):
            victim = self._random.choice(victims)
            os.kill(victim, signal.SIGKILL)
            self._killed.add(victim)
            self.kills, self._steps = self.kills + 1, 0

    def _living(self) -> list[int]:
        """Return the workers that live: many steps may be heard at once, before a death is."""
        return sorted(set(self._executor.process_ids().values()) - self._killed)


async def draw(held: Held, name: str, kind: Kind) -> Outcome:
    """Return what a request ends with; it ends in any case, or the test hangs until its bound."""
    try:
        async with asyncio.timeout(1200):
            return (await held.engine.generate(request(name, kind))).artifacts
    except EngineError as error:
        return error


async def draw_all(held: Held, kinds: Sequence[Kind]) -> list[tuple[Kind, Outcome]]:
    """Run a request of each kind, a few at once; return what each ended with."""
    queue, outcomes = list(enumerate(kinds)), list[tuple[Kind, Outcome]]()

    async def take() -> None:
        while queue:
            number, kind = queue.pop()
            outcomes.append((kind, await draw(held, f"r{number}", kind)))

    await asyncio.gather(*(take() for _ in range(AT_ONCE)))
    return outcomes


@pytest.mark.slow  # even the short one takes two minutes where the cores do much else
@pytest.mark.parametrize(
    ("kinds", "devices", "every_steps", "kills"),
    [
        ([*KINDS[:8:3] * 4, KINDS[8]], 2, 40, 3),
        (KINDS * 20, 4, 50, 50),
    ],
    ids=["short", "long"],
)
async def test_killing_workers_costs_time_and_hardly_any_request(
    tmp_path: Path, kinds: list[Kind], devices: int, every_steps: int, kills: int
) -> None:
    async with embedded_engine(
        [MODELS / "shapes", MODELS / "motion"],
        tmp_path,
        devices=devices,
        save_every_steps=4,
        save_every_s=0.0,
        embedding_cache_bytes=SOME_EMBEDDINGS_BYTES,
    ) as held:
        expected = {kind: await draw(held, f"undisturbed-{kind}", kind) for kind in set(kinds)}
        killer = Killer(held, every_steps, kills, seed=len(kinds))
        began_s = time.monotonic()
        outcomes = await draw_all(held, kinds)
        took_s = time.monotonic() - began_s
        await held.expect_nothing_left()
        await held.reach(lambda: len(held.executor.process_ids()) == devices)
    failures = [outcome for _kind, outcome in outcomes if isinstance(outcome, EngineError)]
    log.info("soaked", kills=killer.kills, took_s=round(took_s), failed=len(failures))
    assert killer.kills == kills
    assert len(outcomes) == len(kinds)
    assert len(failures) <= len(kinds) / 100, failures
    for kind, outcome in outcomes:
        assert isinstance(outcome, EngineError) or outcome == expected[kind], kind
    assert held.problems() == []
