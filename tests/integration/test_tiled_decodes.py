"""A large picture through the engine: as many devices as are idle share its tiles, same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine import GenerationRequest, ModelId, RequestId, Shape
from engine.stages.random_model import write_model
from engine.types import StageKind
from schedulers.sim.events import RunEvent
from tests.support.embedded import embedded_engine

LARGE = Shape(128, 192)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models") / "sd"
    write_model(made, "sd", seed=1)
    card = json.loads((made / "trident.json").read_text())
    (made / "trident.json").write_text(json.dumps({**card, "tiled_above_pixels": 64 * 64}))
    return made


def a_large_picture() -> GenerationRequest:
    return GenerationRequest(
        id=RequestId("large"), model=ModelId("sd"), prompt="a red circle", shape=LARGE, steps=2,
        guidance_scale=1.0, seed=7, arrival_s=0.0, deadline_s=1e12,
    )  # fmt: skip


async def test_tiles_are_shared_out_among_what_is_idle_and_the_file_is_the_same(
    folder: Path, tmp_path: Path
) -> None:
    files, degrees = set(), []
    for devices in (1, 2, 4):
        data_dir = tmp_path / str(devices)
        data_dir.mkdir()
        async with embedded_engine(
            [folder], data_dir, devices=devices, warm_up_degree=1, switches={"scale_up_gain_s": 0.0}
        ) as held:
            await held.reach(
                lambda: all(
                    len(m.loaded) == len(StageKind) for m in held.core.cluster.memories.values()
                )
            )
            result = await held.engine.generate(a_large_picture())
            files.add(result.artifacts[0].sha256)
            await held.expect_nothing_left()
        runs = [event for event in held.events if isinstance(event, RunEvent)]
        degrees.append(max(len(run.devices) for run in runs if run.stage is StageKind.DECODE))
        assert held.problems() == []
    assert degrees == [1, 2, 4]
    assert len(files) == 1
