"""Stages of one request on several machines: real agents on loopback, real workers, same bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engine import GenerationResult
from engine.types import ClusterView, DeviceId, Placement, StageKey, StageKind
from gateway.addresses import parse_address
from observability.snapshot import MonitorSnapshot
from tests.support.embedded import Held, settings_for
from tests.support.live_engine import a_picture
from tests.support.nodes import NodeProcess, running_nodes, shared_nursery

STEPS = 40
E, D, C = StageKind
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers


class ByHand:
    """A planner that wants what it is told; what is on no device is not placed."""

    def __init__(self) -> None:
        self.stages: Mapping[str, tuple[StageKind, ...]] = {}
        self._placed, self._version = Placement(0, {}), 100  # above those that came before

    def place(self, view: ClusterView, snapshot: MonitorSnapshot | None) -> Placement | None:
        del snapshot
        wanted = {
            DeviceId(device): frozenset(StageKey("sd", kind) for kind in kinds)  # type: ignore[arg-type]
            for device, kinds in self.stages.items()
            if device in view.configured
        }
        if wanted == self._placed.stages:
            return None
        self._version += 1
        self._placed = Placement(self._version, wanted)
        return self._placed


class Spanning(Held):
    """An engine of this machine and some nodes, whose stages are placed by hand."""

    def __init__(self, folder: Path, model: Path, nodes: list[NodeProcess], devices: int) -> None:
        addresses = tuple(parse_address(node.address) for node in nodes)
        settings = settings_for(
            [model],
            folder,
            devices=devices,
            nodes=addresses,
            embedding_cache_bytes=0,
            save_every_steps=4,
            save_every_s=0.001,
            warm_up_degree=0,
        )
        super().__init__(settings)

    async def place(self, stages: Mapping[str, tuple[StageKind, ...]]) -> None:
        """Place stages, and wait until they are where they should be."""
        if not isinstance(self.core._planner, ByHand):
            self.core._planner = ByHand()
        self.core._planner.stages = stages
        self.core._wake.set()
        await self.reach(
            lambda: all(
                device in self.memories
                and {s.kind for s in self.memories[DeviceId(device)].loaded} >= set(kinds)
                for device, kinds in stages.items()
            )
        )

    @property
    def memories(self):  # noqa: ANN201
        return self.core.cluster.memories

    async def draw(self, name: str, steps: int = STEPS) -> GenerationResult:
        return await self.engine.generate(a_picture(name, steps=steps))


@asynccontextmanager
async def spanning(
    folder: Path, model: Path, nodes: list[NodeProcess], devices: int = 1
) -> AsyncIterator[Spanning]:
    engine = Spanning(folder, model, nodes, devices)
    await engine.engine.start()
    try:
        yield engine
        await engine.reach(lambda: not engine.core.cluster.teams.busy)
        engine.core.check_integrity()
    finally:
        await engine.engine.close()
    assert engine.problems() == []


@pytest.fixture(scope="module")
def model(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("sd")


@pytest.fixture(scope="module")
def nodes(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NodeProcess]]:
    folder = tmp_path_factory.mktemp("nodes")
    with shared_nursery(folder), running_nodes(2, [model], folder) as processes:
        yield processes


def where(result: GenerationResult) -> list[str]:
    return [timing.device for timing in result.timeline]


async def test_a_request_goes_from_node_to_node_and_ends_with_the_same_bytes(
    nodes: list[NodeProcess], model: Path, tmp_path: Path
) -> None:
    a, b = (f"{node.address}/cpu:0" for node in nodes)
    async with spanning(tmp_path, model, nodes) as engine:
        await engine.place({"cpu:0": (E, D, C)})
        alone = await engine.draw("here")
        assert where(alone) == ["cpu:0"] * 3
        ways = [
            {a: (E,), b: (D,), "cpu:0": (C,)},  # fetched from a by b, from b by this machine
            {"cpu:0": (E,), a: (D,), b: (C,)},  # sent along to a, fetched from a by b
            {b: (E, D, C)},
        ]
        for number, way in enumerate(ways):
            await engine.place(way)
            result = await engine.draw(f"way-{number}")
            order = {kind: device for device, kinds in way.items() for kind in kinds}
            assert where(result) == [order[kind] for kind in (E, D, C)]
            assert result.artifacts[0].content == alone.artifacts[0].content


async def test_a_node_killed_in_mid_diffuse_costs_no_request_and_no_bit_and_may_come_back(
    nodes: list[NodeProcess], model: Path, tmp_path: Path
) -> None:
    first, other = nodes[0], f"{nodes[0].address}/cpu:0"
    async with spanning(tmp_path, model, [first]) as engine:
        await engine.place({"cpu:0": (E, D, C)})
        undisturbed = await engine.draw("undisturbed", steps=100)
        await engine.place({other: (E, D, C)})
        work = asyncio.create_task(engine.draw("disturbed", steps=100))
        await engine.reach(lambda: engine.engine.progress(a_picture("disturbed").id) > 0.4)
        first.kill()
        await engine.reach(lambda: DeviceId(other) not in engine.memories)
        assert first.address in engine.engine.notices()[0]
        await engine.place({"cpu:0": (E, D, C)})
        result = await work
        assert result.artifacts[0].content == undisturbed.artifacts[0].content
        began_again = [t for t in result.timeline if t.node == "diffuse-0"]
        assert [t.device for t in began_again] == ["cpu:0"]
        first.start()
        await engine.reach(lambda: DeviceId(other) in engine.memories)
        await engine.place({other: (E, D, C)})
        assert where(await engine.draw("after")) == [other] * 3
        assert engine.engine.notices() == ()
