"""Latents that outlive the engine, and when they are not trusted."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from engine.keeping import KeptLatents
from engine.pipelines import PipelineSpec, build
from engine.runs import RequestRun
from engine.types import HandoffRef, NodeId, SavedLatent
from tests.support.builders import a_request, a_spec

DIFFUSE = NodeId("diffuse-0")


@pytest.fixture
def spec(tmp_path: Path) -> PipelineSpec:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.safetensors").write_bytes(b"1234")
    return a_spec(folder=str(tmp_path / "model"))


async def a_run(spec: PipelineSpec, name: str = "r1") -> RequestRun:
    request = a_request(name)
    return RequestRun(request, build(spec, request), 0, 0.0)


async def keep(folder: Path, spec: PipelineSpec, step: int = 3) -> None:
    run = await a_run(spec)
    latent = folder / "in-memory"
    latent.write_bytes(b"latent after %d" % step)
    run.go_on_from(DIFFUSE, SavedLatent(step, HandoffRef(DIFFUSE, str(latent), 14)))
    await KeptLatents(folder / "kept").keep_all({spec.id: spec}, (run,))
    latent.unlink()


async def recalled(folder: Path, spec: PipelineSpec, name: str = "r1") -> SavedLatent | None:
    run = await a_run(spec, name)
    KeptLatents(folder / "kept").recall(spec, run)
    return run.saved.get(DIFFUSE)


def read(saved: SavedLatent) -> tuple[bytes, int]:
    path = Path(saved.ref.path)
    return path.read_bytes(), path.stat().st_mode & 0o777


async def test_a_latent_is_found_by_the_next_engine_and_deleted_when_it_is_spent(
    tmp_path: Path, spec: PipelineSpec
) -> None:
    await keep(tmp_path, spec)
    saved = await recalled(tmp_path, spec)
    assert saved is not None
    assert (saved.step, *read(saved)) == (3, b"latent after 3", 0o600)
    others: list[HandoffRef] = []
    free = KeptLatents(tmp_path / "kept").freeing(others.append)
    free(saved.ref)
    free(HandoffRef(DIFFUSE, "/elsewhere", 1))
    assert others == [HandoffRef(DIFFUSE, "/elsewhere", 1)]
    assert await recalled(tmp_path, spec) is None


async def test_of_several_lives_the_one_that_came_furthest_counts(
    tmp_path: Path, spec: PipelineSpec
) -> None:
    for step in (9, 10, 2):
        await keep(tmp_path, spec, step)
    saved = await recalled(tmp_path, spec)
    assert saved is not None
    assert saved.step == 10
    assert len(list((tmp_path / "kept").iterdir())) == 1


async def test_another_request_or_other_weights_begin_anew(
    tmp_path: Path, spec: PipelineSpec
) -> None:
    await keep(tmp_path, spec)
    assert await recalled(tmp_path, spec, "r2") is None
    (Path(spec.folder) / "weights.safetensors").write_bytes(b"12345")
    assert await recalled(tmp_path, spec) is None


async def test_what_nobody_came_for_in_a_day_is_deleted(tmp_path: Path, spec: PipelineSpec) -> None:
    await keep(tmp_path, spec)
    [file] = (tmp_path / "kept").iterdir()
    two_days_ago = time.time() - 2 * 86400
    os.utime(file, (two_days_ago, two_days_ago))
    assert await recalled(tmp_path, spec) is None
    assert list((tmp_path / "kept").iterdir()) == []


async def test_a_latent_that_is_gone_costs_the_request_nothing(
    tmp_path: Path, spec: PipelineSpec
) -> None:
    run = await a_run(spec)
    run.go_on_from(DIFFUSE, SavedLatent(3, HandoffRef(DIFFUSE, str(tmp_path / "gone"), 1)))
    await KeptLatents(tmp_path / "kept").keep_all({spec.id: spec}, (run,))
    assert await recalled(tmp_path, spec) is None


async def test_without_a_folder_nothing_is_kept(spec: PipelineSpec) -> None:
    run = await a_run(spec)
    kept = KeptLatents()
    await kept.keep_all({spec.id: spec}, (run,))
    kept.recall(spec, run)
    assert run.saved == {}
