"""Cancelled again and again, the engine keeps nothing: no memory, slot, file or process."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from engine.types import TaskId
from tests.support.live_engine import LiveEngine, a_picture, live_engine

AT_ONCE = 4
STEPS = 60
MOST_GROWTH_BYTES = 24 << 20  # of a process after its first tenth; allocators keep some slack


class Cancels:
    """Starts requests and cancels each at a random moment of its life, by steps, not by time."""

    def __init__(self, engine: LiveEngine, seed: int) -> None:
        self._engine, self._random = engine, random.Random(seed)
        self._due: dict[str, tuple[int, asyncio.Event]] = {}
        self.finished = 0
        engine.on_step = self._note

    def _note(self, task: TaskId, step: int) -> None:
        at, reached = self._due.get(task.partition("/")[0], (STEPS, asyncio.Event()))
        if step >= at:
            reached.set()

    async def one(self, name: str) -> None:
        at, reached = self._random.choice([0, 0, 1, 2, 3, 5, 8]), asyncio.Event()
        self._due[name] = (at, reached)
        work = asyncio.create_task(self._engine.core.generate(a_picture(name, steps=STEPS)))
        if at == 0:  # before, in or right after its encode
            for _turn in range(self._random.randrange(60)):
                await asyncio.sleep(0)
        else:
            await asyncio.wait([work, asyncio.ensure_future(reached.wait())], timeout=30,
                               return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
        work.cancel()
        try:
            await work
            self.finished += 1
        except asyncio.CancelledError:
            pass
        reached.set()
        del self._due[name]

    async def some(self, names: Iterable[str]) -> None:
        queue = list(names)

        async def take() -> None:
            while queue:
                await self.one(queue.pop())

        await asyncio.gather(*(take() for _ in range(AT_ONCE)))
        await self._engine.idle()


class Held:
    """What processes hold: resident bytes and file descriptors of each, and all their ids."""

    def __init__(self, engine: LiveEngine) -> None:
        self.pids = [os.getpid(), *engine.executor.process_ids().values()]
        self.tasks = len(asyncio.all_tasks())
        self.bytes = [self._resident(pid) for pid in self.pids]
        self.files = [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in self.pids]

    @staticmethod
    def _resident(pid: int) -> int:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("cancels", [50, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers
async def test_cancels_leak_no_memory_slot_file_or_process(
    model_folder: Callable[[str], Path], cancels: int
) -> None:
    async with live_engine([model_folder("sd")], devices=2) as engine:
        undisturbed = await engine.core.generate(a_picture("before", steps=STEPS))
        cancelling = Cancels(engine, seed=cancels)
        await cancelling.some(f"warm-{i}" for i in range(max(10, cancels // 10)))
        before = Held(engine)
        await cancelling.some(f"r{i}" for i in range(cancels))
        after = Held(engine)
        result = await engine.core.generate(a_picture("after", steps=STEPS))
    assert cancelling.finished < cancels / 10  # else this cancels nothing
    assert after.pids == before.pids
    assert after.tasks <= before.tasks
    assert all(b <= a + 4 for a, b in zip(before.files, after.files, strict=True))
    growth = [b - a for a, b in zip(before.bytes, after.bytes, strict=True)]
    assert max(growth) < MOST_GROWTH_BYTES, growth
    assert result.artifacts == undisturbed.artifacts
