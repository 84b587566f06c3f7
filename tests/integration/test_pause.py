"""Paused and resumed on real worker processes: bit for bit what an undisturbed run draws."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from torch import Tensor

from engine import EngineCore, GenerationRequest, ModelId, RequestId, Shape, SystemClock
from engine.executors.local import LocalExecutor
from engine.messages import StageReport
from engine.pipelines import open_pipeline
from engine.stages.base import Job, Snapshot
from engine.stages.registry import load_stage
from engine.stages.team import Solo
from engine.stages.transport import FileTransport
from engine.types import (
    Assignment,
    ClusterView,
    DispatchPlan,
    GenerationResult,
    HandoffRef,
    MediaFormat,
    NodeId,
    Pause,
    PlanId,
    SavedLatent,
    StageKey,
    StageKind,
    StageTask,
    TaskId,
)
from observability.tracing import StageSpans, build_provider
from schedulers.static import StaticPlanner

SHIPPED = Path(__file__).parents[2] / "models"
RANDOM = ("flux", "sd3", "sd", "animatediff")
MODELS = (*RANDOM, "shapes", "motion")
VIDEOS = ("animatediff", "motion")
# So many that a pause which is asked for after the first one is not too late on a busy machine.
STEPS = {"flux": 60, "sd3": 60, "sd": 80, "animatediff": 50, "shapes": 40, "motion": 20}
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of diffusers
]


def request(model: str, **changes: object) -> GenerationRequest:
    is_video = model in VIDEOS
    values = {
        "id": RequestId(f"test-{model}"),
        "model": ModelId(model),
        "prompt": "a red circle on a blue background",
        "shape": Shape(32, 32, frames=9) if is_video else Shape(64, 64),
        "steps": STEPS[model],
        "guidance_scale": 3.5,
        "seed": 7,
        "arrival_s": 0.0,
        "deadline_s": 1.0,
        "media": MediaFormat.MP4 if is_video else MediaFormat.PNG,
    }
    return GenerationRequest(**(values | changes))


class Alternating:
    """Pauses the diffuse after the first step that is seen of each execution, `pauses` times.

    Every execution of a diffuse goes to another device than the one before.

    Attributes:
        at_once: pause together with the launch instead, before any step.
        resuming: whether a paused diffuse may go on.
    """

    def __init__(self) -> None:
        self.pauses, self.at_once, self.resuming = 0, False, True

    def plan(self, ready: Sequence[StageTask], view: ClusterView) -> DispatchPlan:
        devices = sorted(device.info.id for device in view.devices)
        idle = [device.info.id for device in view.devices if device.busy_until_s is None]
        launches = [
            Assignment(task=t, team=(device,), expected_s=1.0, activation_bytes=10, why="")
            for t in ready[:1]
            if (self.resuming or t.saved is None) and len(devices) == 2
            for device in [devices[t.attempt % 2]]
            if device in idle
        ]
        running = [
            r.assignment.task
            for r in view.running
            if r.step > r.assignment.task.steps_done and not r.is_changing
        ]
        chosen = [launch.task for launch in launches] if self.at_once else running
        chosen = [task for task in chosen if task.stage.kind is StageKind.DIFFUSE]
        pauses = tuple(Pause(task.id, "test") for task in chosen if self._take())
        return DispatchPlan(id=PlanId(1), assignments=tuple(launches), pauses=pauses)

    def _take(self) -> bool:
        self.pauses -= 1
        return self.pauses >= 0

    def why_impossible(self, task: StageTask, view: ClusterView) -> str | None:
        del task, view
        return None

    def observe(self, assignment: Assignment, report: StageReport) -> None:
        del assignment, report


class PausingEngine:
    """Two processes, either of which runs any stage of any model.

    Attributes:
        steps: every denoise step reported, with its task, since the last request began.
        paused_at: the steps after which the request's latent was saved.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        specs = [open_pipeline(folder) for folder in folders]
        self.executor = LocalExecutor(specs, devices=2, threads=1)
        self.dispatcher, planner = Alternating(), StaticPlanner(specs)
        planner.place = lambda *_args: None  # type: ignore[method-assign]
        self.core = EngineCore(
            specs,
            executor=self.executor,
            dispatcher=self.dispatcher,
            planner=planner,
            clock=SystemClock(),
            spans=StageSpans(build_provider()),
        )
        self.steps: list[tuple[TaskId, int]] = []
        listener = self.core.listener
        self._note_step, listener.task_progressed = listener.task_progressed, self._progressed  # type: ignore[method-assign]

    def _progressed(self, task: TaskId, step: int, steps: int) -> None:
        self._note_step(task, step, steps)
        self.steps.append((task, step))
        self.core._wake.set()

    async def draw(
        self, wanted: GenerationRequest, pauses: int = 0, *, at_once: bool = False
    ) -> GenerationResult:
        self.begin(pauses, at_once=at_once)
        async with asyncio.timeout(240):
            result = await self.core.generate(wanted)
        await self.idle()
        return result

    def begin(self, pauses: int, *, at_once: bool = False) -> None:
        self.steps.clear()
        self.dispatcher.pauses, self.dispatcher.at_once = pauses, at_once

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.002)

    async def idle(self) -> None:
        """Wait until no team works and audit what is left: nothing."""
        await self.until(lambda: not self.core.cluster.teams.busy)
        self.core.check_integrity()
        assert self.executor._handoffs.used_bytes == 0
        assert self.files() == []

    def files(self) -> list[Path]:
        return list(self.executor._handoffs.folder.iterdir())

    def saved(self) -> SavedLatent | None:
        found = [s for run in self.core._requests.values() for s in run._saved.values()]
        return found[0] if found else None


@pytest.fixture(scope="module")
def folder_of(model_folder: Callable[[str], Path]) -> Callable[[str], Path]:
    return lambda model: model_folder(model) if model in RANDOM else SHIPPED / model


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder_of: Callable[[str], Path]) -> AsyncIterator[PausingEngine]:
    running = PausingEngine([folder_of(model) for model in MODELS])
    await running.core.start()
    try:
        yield running
        await running.idle()
    finally:
        await running.core.close()


def executions(result: GenerationResult) -> list[tuple[str, int]]:
    return [(t.device, t.attempt) for t in result.timeline if t.stage is StageKind.DIFFUSE]


@pytest.mark.parametrize("model", MODELS)
async def test_paused_twice_and_moved_each_time_it_draws_the_same_bits_and_repeats_no_step(
    engine: PausingEngine, model: str
) -> None:
    undisturbed = await engine.draw(request(model))
    assert executions(undisturbed) == [("cpu:1", 1)]
    result = await engine.draw(request(model), pauses=2)
    assert executions(result) == [("cpu:1", 1), ("cpu:0", 2), ("cpu:1", 3)]
    assert [step for _task, step in engine.steps] == list(range(1, request(model).steps + 1))
    assert result.artifacts == undisturbed.artifacts


async def test_a_pause_before_the_first_step_takes_effect_there(engine: PausingEngine) -> None:
    undisturbed = await engine.draw(request("sd"))
    result = await engine.draw(request("sd"), pauses=2, at_once=True)
    assert executions(result) == [("cpu:1", 1), ("cpu:0", 2), ("cpu:1", 3)]
    assert {task for task, _step in engine.steps} == {"test-sd/diffuse-0/3"}
    assert result.artifacts == undisturbed.artifacts


async def test_a_worker_killed_after_a_resume_costs_only_the_steps_since_the_pause(
    engine: PausingEngine,
) -> None:
    undisturbed = await engine.draw(request("shapes", steps=40))
    engine.begin(pauses=1)
    work = asyncio.create_task(engine.core.generate(request("shapes", steps=40)))
    await engine.until(lambda: any(task.endswith("/2") for task, _step in engine.steps))
    saved = engine.saved()
    assert saved is not None
    os.kill(engine.executor.process_ids()[engine.executor.devices[0]], signal.SIGKILL)
    result = await asyncio.wait_for(work, 30)
    await engine.idle()
    assert executions(result) == [("cpu:1", 1), ("cpu:1", 3)]
    retried = [step for task, step in engine.steps if task.endswith("/3")]
    assert retried == list(range(saved.step + 1, 41))
    assert result.artifacts == undisturbed.artifacts


async def test_cancelling_while_it_pauses_leaves_nothing(engine: PausingEngine) -> None:
    engine.begin(pauses=1)
    work = asyncio.create_task(engine.core.generate(request("sd", steps=200)))
    await engine.until(lambda: engine.dispatcher.pauses <= 0)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    await engine.idle()


async def test_cancelling_what_is_paused_frees_its_latent(engine: PausingEngine) -> None:
    engine.begin(pauses=1)
    engine.dispatcher.resuming = False
    work = asyncio.create_task(engine.core.generate(request("sd", steps=200)))
    await engine.until(lambda: engine.saved() is not None and not engine.core.cluster.teams.busy)
    engine.core.check_integrity()
    assert len(engine.files()) == 2  # the encoded prompt and the latent
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    engine.dispatcher.resuming = True
    await engine.idle()


class PauseAt:
    """A boundary that wants a pause after one step, and counts how many are taken.

    Attributes:
        saves: what is saved before every step, if that is wanted.
    """

    def __init__(self, step: int | None, *, saving: bool = False) -> None:
        self._pause_at, self.step, self.taken = step, 0, 0
        self.wants_save, self.saves = saving, list[Snapshot]()

    def keep(self, snapshot: Snapshot) -> None:
        self.saves.append(snapshot)

    @property
    def wants_pause(self) -> bool:
        return self.step == self._pause_at

    def passed(self, step: int, steps: int) -> None:
        del steps
        self.step, self.taken = step, self.taken + 1


def a_task(wanted: GenerationRequest) -> StageTask:
    return StageTask(
        id=TaskId("t"), request=wanted, node=NodeId("diffuse-0"),
        stage=StageKey(wanted.model, StageKind.DIFFUSE), image_index=0,
        inputs=(), sequence=0, attempt=1, ready_s=0.0,
    )  # fmt: skip


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("model", MODELS)
async def test_a_pause_after_any_step_changes_no_bit_of_the_latent(
    folder_of: Callable[[str], Path], tmp_path: Path, model: str
) -> None:
    device, steps = torch.device("cpu"), 3
    folder, transport = folder_of(model), FileTransport(tmp_path, device)
    family = open_pipeline(folder).family
    task = a_task(request(model, steps=steps))
    encode = load_stage(folder, family, StageKind.ENCODE, device)
    diffuse = load_stage(folder, family, StageKind.DIFFUSE, device)
    [encoded] = encode.run([Job(task, {}, PauseAt(None))], Solo())

    def part(
        pause_at: int | None, ref: HandoffRef | None = None
    ) -> tuple[Tensor | HandoffRef, int]:
        boundary = PauseAt(pause_at)
        snapshot = None if ref is None else transport.get_snapshot(ref)
        job = Job(task, encoded.tensors, boundary, snapshot)
        [result] = diffuse.run([job], Solo())
        if result.snapshot is None:
            return result.tensors["latents"], boundary.taken
        return transport.put_snapshot(task.node, task.id, result.snapshot), boundary.taken

    undisturbed, _taken = part(None)
    assert isinstance(undisturbed, Tensor)
    for pause_at in range(steps):
        ref, first = part(pause_at)
        assert isinstance(ref, HandoffRef)
        latents, second = part(None, ref)
        assert isinstance(latents, Tensor)
        assert (first, second) == (pause_at, steps - pause_at)
        assert torch.equal(latents, undisturbed), pause_at
    too_late, taken = part(steps)
    assert isinstance(too_late, Tensor)
    assert (taken, torch.equal(too_late, undisturbed)) == (steps, True)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("model", ["flux", "sd"])
async def test_saving_before_every_step_changes_no_bit_and_each_save_can_be_gone_on_from(
    folder_of: Callable[[str], Path], model: str
) -> None:
    device, steps = torch.device("cpu"), 3
    folder = folder_of(model)
    family = open_pipeline(folder).family
    task = a_task(request(model, steps=steps))
    encode = load_stage(folder, family, StageKind.ENCODE, device)
    diffuse = load_stage(folder, family, StageKind.DIFFUSE, device)
    [encoded] = encode.run([Job(task, {}, PauseAt(None))], Solo())

    def latents(boundary: PauseAt, snapshot: Snapshot | None = None) -> Tensor:
        [result] = diffuse.run([Job(task, encoded.tensors, boundary, snapshot)], Solo())
        return result.tensors["latents"]

    undisturbed = latents(PauseAt(None))
    saving = PauseAt(None, saving=True)
    assert torch.equal(latents(saving), undisturbed)
    assert len(saving.saves) == steps
    for done, snapshot in enumerate(saving.saves):
        rest = PauseAt(None)
        assert torch.equal(latents(rest, snapshot), undisturbed)
        assert rest.taken == steps - done
