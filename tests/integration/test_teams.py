"""Launches on teams of real worker processes: any degree, changes of degree, and lost members."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from engine import ModelId, Shape
from engine.messages import StageReport
from engine.types import (
    Artifact,
    Assignment,
    ClusterView,
    DeviceId,
    DispatchPlan,
    GenerationResult,
    MediaFormat,
    PlanId,
    Resize,
    StageKind,
    StageTask,
)
from schedulers.cost import CostModel
from schedulers.dispatch.knobs import WORKERS
from schedulers.dispatch.trident import TridentDispatcher
from schedulers.profile import Profile, load_profile
from tests.support.live_engine import LiveEngine, a_picture

SHIPPED = Path(__file__).parents[2] / "models"
A, B = DeviceId("cpu:0"), DeviceId("cpu:1")
MODELS = ("sd3", "shapes", "animatediff")
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of diffusers
]


class Scripted:
    """A dispatcher that runs diffuses on the teams of a list, one after another.

    Attributes:
        teams: of the next diffuses; the last is used for all that follow.
        change_after: steps of a launch after which it moves to the next team.
        degrees: of every diffuse launch that ended well.
    """

    def __init__(self) -> None:
        self.teams: list[tuple[DeviceId, ...]] = [(A,)]
        self.change_after: int | None = None
        self.degrees: list[int] = []

    def plan(self, ready: Sequence[StageTask], view: ClusterView) -> DispatchPlan:
        idle = {d.info.id for d in view.devices if d.busy_until_s is None}
        launches = []
        for task in ready[:1]:
            diffuses = task.stage.kind is StageKind.DIFFUSE
            team = self.teams[0] if diffuses else (A,)
            if idle.issuperset(team):
                launches.append(self._launch(task, team))
                if diffuses and len(self.teams) > 1:
                    self.teams.pop(0)
        resizes = []
        for running in view.running:
            task = running.assignment.task
            done = running.step - task.steps_done
            if self.change_after and done >= self.change_after and not running.is_changing:
                onward = self._launch(task, self.teams.pop(0))
                resizes.append(Resize(task.id, onward))
                self.change_after = self.change_after if self.teams else None
        return DispatchPlan(id=PlanId(1), assignments=tuple(launches), resizes=tuple(resizes))

    def _launch(self, task: StageTask, team: tuple[DeviceId, ...]) -> Assignment:
        return Assignment(task=task, team=team, expected_s=1.0, activation_bytes=10, why="script")

    def why_impossible(self, task: StageTask, view: ClusterView) -> str | None:
        del task, view
        return None

    def observe(self, assignment: Assignment, report: StageReport) -> None:
        del report
        if assignment.task.stage.kind is StageKind.DIFFUSE:
            self.degrees.append(assignment.degree)


class TeamEngine(LiveEngine):
    """Two processes under a script."""

    def __init__(self, folders: Sequence[Path]) -> None:
        super().__init__(folders, devices=2)
        self.script = Scripted()
        self.core._dispatcher = self.script
        self.core._launcher._observe = self.script.observe
        self.on_step = lambda _task, _step: self.core._wake.set()

    async def draw(
        self, model: str, *teams: tuple[DeviceId, ...], change_after: int | None = None, **more: Any
    ) -> GenerationResult:
        self.begin(*teams, change_after=change_after)
        result = await asyncio.wait_for(self.core.generate(wanted(model, **more)), 240)
        await self.idle()
        return result

    def begin(self, *teams: tuple[DeviceId, ...], change_after: int | None = None) -> None:
        self.steps.clear()
        self.script.teams, self.script.change_after = list(teams), change_after
        self.script.degrees = []


def wanted(model: str, **changes: Any) -> Any:
    if model == "animatediff":
        changes = {"shape": Shape(32, 32, frames=5), "media": MediaFormat.MP4} | changes
    return a_picture(f"{model}-{os.urandom(4).hex()}", model, **changes)


def differ_by(left: Artifact, right: Artifact) -> int:
    """Return the largest difference of two pictures in one of 256 levels; films: of their bytes."""
    if left.media_type == "video/mp4":
        return abs(len(left.content) - len(right.content)) // 64
    pictures = [np.array(Image.open(io.BytesIO(a.content))).astype(int) for a in (left, right)]
    return int(np.abs(pictures[0] - pictures[1]).max())


def that_scales(model: str) -> Profile:
    """Return a profile by which a step on k devices takes the k-th part of a second."""
    l20 = load_profile("l20")
    profiled, kind = l20.models["sd3"], StageKind.DIFFUSE
    replace = msgspec.structs.replace
    entries = tuple(replace(e, duration_s=1 / e.degree) for e in profiled.stages[kind].entries)
    diffuse = replace(profiled.stages[kind], entries=entries)
    profiled = replace(profiled, stages={**profiled.stages, kind: diffuse})
    return replace(l20, models={model: profiled})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model_folder: Callable[[str], Path]) -> AsyncIterator[TeamEngine]:
    folders = [SHIPPED / m if m == "shapes" else model_folder(m) for m in MODELS]
    running = TeamEngine(folders)
    await running.core.start()
    try:
        await running.ready()
        yield running
        await running.idle()
    finally:
        await running.core.close()


@pytest.mark.parametrize("model", MODELS)
async def test_two_devices_draw_what_one_draws(engine: TeamEngine, model: str) -> None:
    [alone] = (await engine.draw(model, (A,))).artifacts
    [together] = (await engine.draw(model, (B, A))).artifacts
    assert engine.script.degrees == [2]
    assert differ_by(alone, together) <= 1


@pytest.mark.parametrize("model", ["sd3", "shapes"])
async def test_a_diffuse_changes_its_degree_twice_and_repeats_no_step(
    engine: TeamEngine, model: str
) -> None:
    [alone] = (await engine.draw(model, (A,), steps=30)).artifacts
    moved = await engine.draw(model, (A,), (A, B), (B,), change_after=2, steps=30)
    assert [step for _task, step in engine.steps] == list(range(1, 31))
    assert engine.script.degrees == [1, 2, 1]
    assert differ_by(alone, moved.artifacts[0]) <= 1


async def test_a_team_of_which_a_member_dies_is_retried_and_the_survivor_lives_on(
    engine: TeamEngine,
) -> None:
    [alone] = (await engine.draw("shapes", (A,), steps=40)).artifacts
    pids = engine.executor.process_ids()
    engine.begin((A, B))
    work = asyncio.create_task(engine.core.generate(wanted("shapes", steps=40)))
    await engine.until(lambda: len(engine.steps) >= 3)
    killed_s = asyncio.get_running_loop().time()
    os.kill(pids[B], signal.SIGKILL)
    await engine.until(lambda: not engine.core._launcher.running())
    assert asyncio.get_running_loop().time() - killed_s < 15  # the survivor did not hang
    [artifact] = (await asyncio.wait_for(work, 240)).artifacts
    await engine.idle()
    assert differ_by(alone, artifact) <= 1
    now = engine.executor.process_ids()
    assert (now[A] == pids[A], now[B] == pids[B]) == (True, False)
    [again] = (await engine.draw("shapes", (A, B), steps=40)).artifacts
    assert differ_by(alone, again) <= 1


async def test_cancelling_stops_all_members_at_the_same_step(engine: TeamEngine) -> None:
    engine.begin((A, B))
    work = asyncio.create_task(engine.core.generate(wanted("shapes", steps=180)))
    await engine.until(lambda: len(engine.steps) >= 2)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    await engine.idle()
    assert len(engine.steps) < 100
    [artifact] = (await engine.draw("shapes", (A, B))).artifacts
    assert artifact.content


async def test_a_pause_at_the_same_degree_changes_no_bit(engine: TeamEngine) -> None:
    [undisturbed] = (await engine.draw("shapes", (A, B), steps=20)).artifacts
    moved = await engine.draw("shapes", (A, B), (B, A), change_after=3, steps=20)
    assert engine.script.degrees == [2, 2]
    assert moved.artifacts[0].content == undisturbed.content


async def test_the_dispatcher_puts_a_diffuse_on_two_devices_where_a_profile_says_that_it_pays(
    engine: TeamEngine,
) -> None:
    [alone] = (await engine.draw("shapes", (A,), steps=20)).artifacts
    cost = CostModel(list(engine.core.specs.values()), that_scales("shapes"))
    policy = TridentDispatcher(cost, WORKERS)
    engine.core._dispatcher = policy
    try:
        [artifact] = (await engine.draw("shapes", (A,), steps=20)).artifacts
    finally:
        engine.core._dispatcher = engine.script
    assert cost.degrees(ModelId("shapes")) == (1, 2)  # of the profile's 1, 2, 4, 8
    assert engine.script.degrees == [2]
    assert differ_by(alone, artifact) <= 1
