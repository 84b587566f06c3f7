"""How often a worker process is started again."""

from __future__ import annotations

import asyncio
from typing import Any

from engine.executors.supervising import Supervisor
from schedulers.sim.clock import run_virtual


class Slot:
    """One whose first process lives for an hour; then the machine starts no more."""

    device = "cpu:0"

    def __init__(self) -> None:
        self.spawned_s: list[float] = []

    @property
    def lived_s(self) -> float:
        return asyncio.get_running_loop().time() - self.spawned_s[0]

    async def spawn(self) -> None:
        self.spawned_s.append(asyncio.get_running_loop().time())
        if len(self.spawned_s) > 1:
            raise OSError("Cannot allocate memory")

    async def wait(self) -> str:
        await asyncio.sleep(3600)
        return "it ended"


def test_a_machine_that_starts_no_process_is_asked_ever_more_rarely() -> None:
    async def scenario() -> list[float]:
        slot: Any = Slot()
        supervising = asyncio.create_task(
            Supervisor([slot], lambda _slot, _why: None)._supervise(slot)
        )
        await asyncio.sleep(3660)
        supervising.cancel()
        return [b - a for a, b in zip(slot.spawned_s[1:], slot.spawned_s[2:], strict=False)]

    pauses_s = [round(pause_s, 3) for pause_s in run_virtual(scenario())]
    assert pauses_s == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0, 10.0]
