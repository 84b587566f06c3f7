"""Latents that outlive the engine, and when they are not trusted."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from engine import keeping
from engine.errors import RequestCancelledError
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


class Life:
    """What one engine keeps in a folder that others share."""

    def __init__(self, folder: Path, spec: PipelineSpec) -> None:
        self._memory, self._spec = folder, spec
        self._tasks: set[asyncio.Task[None]] = set()
        self.kept = KeptLatents(folder / "kept", [spec], self._spawn)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        return task

    def begin_anew(self, name: str = "r1") -> RequestRun:
        request = a_request(name)
        return RequestRun(request, build(self._spec, request), 0, 0.0)

    def begin(self, name: str = "r1") -> RequestRun:
        run = self.begin_anew(name)
        self.kept.resume(run, self.kept._take_over(run.request))
        return run

    def save(self, run: RequestRun, step: int) -> None:
        """Let a run save a latent, as a worker's word would."""
        latent = self._memory / f"in-memory-{step}"
        latent.write_bytes(b"latent after %d" % step)
        run.go_on_from(DIFFUSE, SavedLatent(step, HandoffRef(DIFFUSE, str(latent), 14)))
        self.kept.follow(run)

    async def rest(self) -> None:
        """Return when nothing is written or deleted any more."""
        while self._tasks:
            await self._tasks.pop()


def end(run: RequestRun) -> None:
    run.fail(RequestCancelledError("enough"))
    run.outcome.exception()
    run.abandon()


def read(saved: SavedLatent) -> tuple[bytes, int]:
    path = Path(saved.ref.path)
    return path.read_bytes(), path.stat().st_mode & 0o777


def files(folder: Path) -> list[bytes]:
    return sorted(file.read_bytes() for file in (folder / "kept").iterdir())


async def kept_at(folder: Path, spec: PipelineSpec, step: int = 3) -> None:
    """Live through a life that is killed after a save."""
    life = Life(folder, spec)
    life.save(life.begin(), step)
    await life.rest()


async def recalled(folder: Path, spec: PipelineSpec, name: str = "r1") -> SavedLatent | None:
    return Life(folder, spec).begin(name).saved.get(DIFFUSE)


async def test_what_a_diffuse_saves_is_found_by_an_engine_that_comes_after_a_kill(
    tmp_path: Path, spec: PipelineSpec
) -> None:
    await kept_at(tmp_path, spec)
    saved = await recalled(tmp_path, spec)
    assert saved is not None
    assert (saved.step, saved.ref.size_bytes) == (3, 14)
    assert read(saved) == (b"latent after 3", 0o600)


async def test_only_the_newest_latent_of_a_diffuse_is_kept(
    tmp_path: Path, spec: PipelineSpec
) -> None:
    life = Life(tmp_path, spec)
    run = life.begin()
    for step in (5, 10, 15):
        life.save(run, step)
        await life.rest()
        assert files(tmp_path) == [b"latent after %d" % step]


async def test_what_is_saved_while_another_is_written_waits_and_only_the_newest_is_written(
    tmp_path: Path, spec: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    copy = keeping.copy_whole

    def noted(source: Path, target: Path) -> None:
        written.append(source.name)
        copy(source, target)

    monkeypatch.setattr(keeping, "copy_whole", noted)
    life = Life(tmp_path, spec)
    run = life.begin()
    for step in (5, 10, 15):
        life.save(run, step)
    await life.rest()
    assert written == ["in-memory-5", "in-memory-15"]
    assert files(tmp_path) == [b"latent after 15"]


async def test_a_slow_disk_holds_up_two_threads_and_no_more(
    tmp_path: Path, spec: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end, copy = list[str](), threading.Event(), keeping.copy_whole

    def slowly(source: Path, target: Path) -> None:
        begun.append(source.name)
        may_end.wait(60)
        copy(source, target)

    monkeypatch.setattr(keeping, "copy_whole", slowly)
    life = Life(tmp_path, spec)
    for number in range(5):
        life.save(life.begin(f"r{number}"), number + 1)
    while len(begun) < 2:
        await asyncio.sleep(0)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(begun) == 2
    may_end.set()
    await life.rest()
    assert len(files(tmp_path)) == 5


async def test_a_latent_is_deleted_when_its_request_is_over(
    tmp_path: Path, spec: PipelineSpec
) -> None:
    life = Life(tmp_path, spec)
    run = life.begin()
    life.save(run, 3)
    await life.rest()
    life.save(run, 4)  # which is still being written
    end(run)
    life.kept.follow(run)
    await life.rest()
    assert files(tmp_path) == []


async def test_a_latent_stays_when_its_request_ends_because_the_engine_stops(
    tmp_path: Path, spec: PipelineSpec
) -> None:
    life = Life(tmp_path, spec)
    run = life.begin()
    life.save(run, 3)
    await life.kept.settle([run])
    end(run)
    life.kept.follow(run)
    await life.rest()
    assert files(tmp_path) == [b"latent after 3"]


async def test_a_latent_that_nobody_has_gone_on_from_yet_outlives_a_second_stop(
    tmp_path: Path, spec: PipelineSpec
) -> None:
    await kept_at(tmp_path, spec)
    life = Life(tmp_path, spec)
    run = life.begin()
    await life.kept.settle([run])
    end(run)
    life.kept.follow(run)
    await life.rest()
    saved = await recalled(tmp_path, spec)
    assert saved is not None
    assert read(saved)[0] == b"latent after 3"


async def test_stopping_waits_for_the_newest_latent_of_every_request(
    tmp_path: Path, spec: PipelineSpec
) -> None:
    life = Life(tmp_path, spec)
    run, other = life.begin(), life.begin("r2")
    for step in (5, 10):
        life.save(run, step)
    life.save(other, 7)
    await life.kept.settle([run, other])
    assert b"latent after 10" in files(tmp_path)
    assert b"latent after 7" in files(tmp_path)


async def test_of_several_lives_the_one_that_came_furthest_counts(
    tmp_path: Path, spec: PipelineSpec
) -> None:
    for step in (9, 10, 2):
        life = Life(tmp_path, spec)
        life.save(life.begin_anew(), step)
        await life.rest()
    saved = await recalled(tmp_path, spec)
    assert saved is not None
    assert saved.step == 10
    assert files(tmp_path) == [b"latent after 10"]


async def test_an_engine_that_lost_its_request_takes_nothing_from_the_one_that_has_it(
    tmp_path: Path, spec: PipelineSpec
) -> None:
    await kept_at(tmp_path, spec)
    hung = Life(tmp_path, spec)
    lost = hung.begin()
    saved = await recalled(tmp_path, spec)
    end(lost)
    hung.kept.follow(lost)
    await hung.rest()
    assert saved is not None
    assert read(saved)[0] == b"latent after 3"


async def test_another_request_or_other_weights_begin_anew(
    tmp_path: Path, spec: PipelineSpec
) -> None:
    await kept_at(tmp_path, spec)
    assert await recalled(tmp_path, spec, "r2") is None
    (Path(spec.folder) / "weights.safetensors").write_bytes(b"12345")
    assert await recalled(tmp_path, spec) is None


def two_days_old(folder: Path) -> Path:
    [file] = (folder / "kept").iterdir()
    at_s = time.time() - 2 * 86400
    os.utime(file, (at_s, at_s))
    return file


async def test_what_nobody_came_for_in_a_day_is_deleted(tmp_path: Path, spec: PipelineSpec) -> None:
    await kept_at(tmp_path, spec)
    two_days_old(tmp_path)
    assert await recalled(tmp_path, spec) is None
    assert files(tmp_path) == []


async def test_an_engine_that_lives_long_sweeps_as_it_goes(
    tmp_path: Path, spec: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kept_at(tmp_path, spec)
    life = Life(tmp_path, spec)
    two_days_old(tmp_path)
    run = life.begin_anew("r2")
    life.save(run, 5)
    await life.rest()
    assert files(tmp_path) == [b"latent after 3", b"latent after 5"]
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s + 2 * 3600)
    life.save(run, 10)
    await life.rest()
    assert files(tmp_path) == [b"latent after 10"]


async def test_engines_that_sweep_at_once_do_not_trip_over_each_other(
    tmp_path: Path, spec: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kept_at(tmp_path, spec)
    file = two_days_old(tmp_path)
    listed = Path.iterdir

    def swept_meanwhile(folder: Path) -> Any:
        found = list(listed(folder))
        file.unlink(missing_ok=True)
        return iter(found)

    monkeypatch.setattr(Path, "iterdir", swept_meanwhile)
    assert await recalled(tmp_path, spec) is None


async def test_a_latent_that_is_gone_costs_the_request_nothing(
    tmp_path: Path, spec: PipelineSpec
) -> None:
    life = Life(tmp_path, spec)
    run = life.begin()
    run.go_on_from(DIFFUSE, SavedLatent(3, HandoffRef(DIFFUSE, str(tmp_path / "gone"), 1)))
    life.kept.follow(run)
    await life.rest()
    assert files(tmp_path) == []


async def test_a_folder_that_is_slow_holds_up_nobody_else(
    tmp_path: Path, spec: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kept_at(tmp_path, spec)
    life, may_end, listed = Life(tmp_path, spec), threading.Event(), Path.iterdir

    def slowly(folder: Path) -> Any:
        assert may_end.wait(60)
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", slowly)
    recall = asyncio.create_task(life.kept.recall(a_request()))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not recall.done()
    may_end.set()
    assert (await recall)[DIFFUSE].step == 3


async def test_a_model_that_is_not_served_has_nothing_kept(
    tmp_path: Path, spec: PipelineSpec
) -> None:
    await kept_at(tmp_path, spec)
    assert await Life(tmp_path, spec).kept.recall(a_request(model="another")) == {}


async def test_a_folder_that_is_gone_costs_the_request_nothing(
    tmp_path: Path, spec: PipelineSpec
) -> None:
    life = Life(tmp_path, spec)
    (tmp_path / "kept").rmdir()
    assert not life.begin().saved


async def test_a_disk_that_is_full_leaves_no_half_file(
    tmp_path: Path, spec: PipelineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    await kept_at(tmp_path, spec)
    assert files(tmp_path) == []


async def test_hand_offs_elsewhere_are_let_go_of_and_kept_files_are_not(
    tmp_path: Path, spec: PipelineSpec
) -> None:
    await kept_at(tmp_path, spec)
    life = Life(tmp_path, spec)
    saved = life.begin().saved[DIFFUSE]
    others: list[HandoffRef] = []
    release = life.kept.freeing(others.append)
    release(saved.ref)  # the file goes when its diffuse is done
    release(HandoffRef(DIFFUSE, "/elsewhere", 1))
    assert others == [HandoffRef(DIFFUSE, "/elsewhere", 1)]


async def test_without_a_folder_nothing_is_kept(tmp_path: Path, spec: PipelineSpec) -> None:
    life = Life(tmp_path, spec)
    life.kept = KeptLatents(None, [spec], life._spawn)
    run = life.begin_anew()
    life.save(run, 3)
    await life.kept.settle([run])
    assert await life.kept.recall(run.request) == {}
    assert files(tmp_path) == []
