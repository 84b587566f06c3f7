"""An engine whose devices lie on two nodes, one of which dies; on the virtual clock."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.core import EngineCore
from engine.executors.fake import FakeExecutor
from engine.executors.spanning import SpanningExecutor
from engine.executors.watching import WatchedExecutor
from engine.messages import Saving
from observability.tracing import StageSpans, build_provider
from schedulers.cost import CostModel
from schedulers.dispatch.knobs import WORKERS
from schedulers.dispatch.trident import TridentDispatcher
from schedulers.sim.audit import audit
from schedulers.sim.chronicle import Chronicle
from schedulers.sim.clock import VirtualClock, run_virtual
from schedulers.sim.events import SimEvent
from schedulers.static import EverywherePlanner
from tests.support.builders import a_request, a_spec, devices
from tests.support.engines import STAGE_SECONDS
from tests.support.nodes import FakeNode, devices_of


class Spanned:
    """A core over this machine's devices and those of a node `b`, with its history."""

    def __init__(self, here: int = 1, there: int = 1, saving: Saving | None = None) -> None:
        clock, spec = VirtualClock(), a_spec()
        options: dict[str, Any] = {
            "clock": clock,
            "duration_s": lambda a: 2.5 * a.task.steps_left or STAGE_SECONDS[a.task.stage.kind],
            "saving": saving,
            "restart_s": 3.0,
        }
        self.home = FakeExecutor(devices(here), **options)
        self.node = FakeNode("b", devices_of("b", there), self.home, **options)
        self.spanning = SpanningExecutor(self.home, [self.node])
        self.events: list[SimEvent] = []
        weights = {spec.stage(kind): size for kind, size in spec.weight_bytes.items()}
        self.chronicle = Chronicle(clock, weights, self.events.append)
        self.core = EngineCore(
            [spec],
            executor=WatchedExecutor(self.spanning, clock, self.chronicle),
            dispatcher=TridentDispatcher(CostModel([spec]), WORKERS),
            planner=EverywherePlanner([spec]),
            clock=clock,
            spans=StageSpans(build_provider()),
            embedding_bytes=1 << 30,
        )

    async def run(self, *, count: int = 1, n: int = 2, die_at: float | None = None) -> list[Any]:
        """Run requests while the node dies, and audit what is left."""
        self.chronicle.begin()
        await self.core.start()
        if die_at is not None:
            asyncio.get_running_loop().call_later(die_at, self.node.die)
        wishes = [a_request(f"r{i}", n=n, prompt=f"prompt {i}") for i in range(count)]
        for wish in wishes:
            self.chronicle.arrived(wish, encoded=False, resumed=False)
        results = await asyncio.gather(*map(self._one, wishes))
        await asyncio.sleep(0)
        self.core.check_integrity()
        self.core.embeddings.clear()
        assert self.home.alive == {}
        assert self.node.alive == {}
        await self.core.close()
        return results

    async def _one(self, wish: Any) -> Any:
        result = await self.core.generate(wish)
        self.chronicle.finished(wish)
        return result


def test_requests_use_the_devices_of_both_nodes_and_leave_nothing() -> None:
    sim = Spanned()
    results = run_virtual(sim.run(count=3))
    used = {timing.device for result in results for timing in result.timeline}
    assert used == {"fake:0", "b/fake:0"}
    assert audit(sim.events) == []


@pytest.mark.parametrize("saving", [None, Saving(1, 0.0)])
@pytest.mark.parametrize(("here", "there", "n"), [(1, 1, 3), (1, 2, 2), (2, 1, 4)])
def test_whatever_lay_on_a_node_that_dies_is_made_again_and_no_request_is_lost(
    here: int, there: int, n: int, saving: Saving | None
) -> None:
    for moment in range(24):
        sim = Spanned(here, there, saving)
        results = run_virtual(sim.run(count=2, n=n, die_at=0.3 + 1.7 * moment))
        assert [len(result.artifacts) for result in results] == [n, n], moment
        assert audit(sim.events) == [], moment


def test_a_diffuse_on_a_node_that_dies_goes_on_from_what_it_has_saved() -> None:
    def took(saving: Saving | None) -> float:
        async def scenario() -> float:
            sim = Spanned(here=0, saving=saving)
            await sim.run(n=1, die_at=9.0)
            return asyncio.get_running_loop().time()

        return run_virtual(scenario())

    assert took(Saving(1, 0.0)) < took(None) - 5.0


def test_nothing_is_impossible_while_a_node_that_was_never_reached_may_bring_devices() -> None:
    async def scenario() -> None:
        sim = Spanned(here=0)
        sim.node.is_away = True
        await sim.core.start()
        waiting = asyncio.create_task(sim.core.generate(a_request("r")))
        await asyncio.sleep(10)
        assert not waiting.done()
        await sim.node.appear()
        assert len((await waiting).artifacts) == 1
        await sim.core.close()

    run_virtual(scenario())
