"""Diffuses of several requests in one launch: what each ends with, and what a cancelled one leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from engine import GenerationRequest, ModelId, RequestId, Shape
from engine.pipelines import open_pipeline
from engine.stages.base import CancelledAtStep, Job, Snapshot, Stage, StageResult, Undisturbed
from engine.stages.denoise import LATENTS
from engine.stages.registry import load_stage
from engine.stages.team import Solo
from engine.types import MediaFormat, NodeId, StageKey, StageKind, StageTask, TaskId

SHIPPED = Path(__file__).parents[2] / "models"
# of the largest number in the latent; float32 and one thread; docs/teams.md states it
TOLERANCE = 2e-5
MODELS = ("sd", "sd3", "flux", "animatediff", "shapes")
Stages = dict[StageKind, Stage]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def stages(model_folder: Callable[[str], Path]) -> Callable[[str], Stages]:
    loaded: dict[str, Stages] = {}

    def load(model: str) -> Stages:
        if model not in loaded:
            folder = SHIPPED / model if (SHIPPED / model).exists() else model_folder(model)
            family = open_pipeline(folder).family
            kinds = (StageKind.ENCODE, StageKind.DIFFUSE)
            loaded[model] = {k: load_stage(folder, family, k, torch.device("cpu")) for k in kinds}
        return loaded[model]

    return load


class Boundary(Undisturbed):
    """Tells a diffuse to stop after `last` steps, or to pause before its step `pause`."""

    def __init__(self, last: int | None = None, pause: int | None = None) -> None:
        self._last, self._pause, self.passed_steps = last, pause, 0

    @property
    def wants_pause(self) -> bool:  # type: ignore[override] # the twin's is a constant
        return self.passed_steps == self._pause

    def passed(self, step: int, steps: int) -> None:
        del steps
        self.passed_steps = step
        if step == self._last:
            raise CancelledAtStep(step)


def a_job(stages: Stages, model: str, seed: int, **changes: Any) -> Job:
    """Return a diffuse with its own seed, prompt and guidance, and its encoded prompt."""
    film = model == "animatediff"
    values: dict[str, Any] = {
        "id": RequestId(f"r{seed}"), "model": ModelId(model), "prompt": f"{seed} red circles",
        "shape": Shape(64, 64, 3) if film else Shape(64, 96), "steps": 4,
        "guidance_scale": 2.0 + seed, "seed": seed, "arrival_s": 0.0, "deadline_s": 1.0,
        "media": MediaFormat.MP4 if film else MediaFormat.PNG,
    }  # fmt: skip
    request = GenerationRequest(**(values | changes))
    task = StageTask(
        id=TaskId(f"t{seed}"), request=request, node=NodeId("n"),
        stage=StageKey(request.model, StageKind.DIFFUSE), image_index=0, inputs=(), sequence=0,
        attempt=1, ready_s=0.0,
    )  # fmt: skip
    [encoded] = stages[StageKind.ENCODE].run([Job(task, {}, Undisturbed())], Solo())
    return Job(task, encoded.tensors, Boundary())


def far(result: StageResult, other: StageResult) -> float:
    """Return how far two latents are apart, as a share of the largest number."""
    a, b = result.tensors[LATENTS], other.tensors[LATENTS]
    return float((a - b).abs().max() / b.abs().max())


def calls_of(stage: Stage, jobs: list[Job]) -> tuple[list[StageResult], list[int]]:
    """Run jobs; return their results and the rows of every call of the denoiser."""
    pipe = stage._pipe  # type: ignore[attr-defined]
    model: torch.nn.Module = getattr(pipe, "unet", None) or pipe.transformer
    rows: list[int] = []

    def count(_module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        latents = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        assert latents is not None
        rows.append(len(latents))

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        return stage.run(jobs, Solo()), rows
    finally:
        handle.remove()


@pytest.mark.parametrize("model", MODELS)
def test_a_batch_draws_what_each_request_draws_alone(
    stages: Callable[[str], Stages], model: str
) -> None:
    loaded = stages(model)
    jobs = [a_job(loaded, model, seed) for seed in (1, 2, 3)]
    alone = [loaded[StageKind.DIFFUSE].run([job], Solo())[0] for job in jobs]
    together, rows = calls_of(loaded[StageKind.DIFFUSE], jobs)
    assert len(rows) == 4
    assert all(far(a, b) < TOLERANCE for a, b in zip(together, alone, strict=True))
    assert far(alone[0], alone[1]) > 0.1  # seeds and prompts were not mixed up


def test_jobs_that_cannot_be_stacked_run_in_calls_of_their_own_and_keep_every_bit(
    stages: Callable[[str], Stages],
) -> None:
    loaded = stages("shapes")
    jobs = [
        a_job(loaded, "shapes", 1),
        a_job(loaded, "shapes", 2, shape=Shape(64, 64)),
        a_job(loaded, "shapes", 3, guidance_scale=1.0),
    ]
    alone = [loaded[StageKind.DIFFUSE].run([job], Solo())[0] for job in jobs]
    together, rows = calls_of(loaded[StageKind.DIFFUSE], jobs)
    assert rows == [2] * 4 + [2] * 4 + [1] * 4
    assert all(far(a, b) == 0.0 for a, b in zip(together, alone, strict=True))


def test_a_cancelled_member_leaves_the_others_to_their_end(
    stages: Callable[[str], Stages],
) -> None:
    loaded = stages("sd")
    jobs = [a_job(loaded, "sd", seed) for seed in (1, 2, 3)]
    alone = [loaded[StageKind.DIFFUSE].run([job], Solo())[0] for job in jobs]
    jobs[0] = jobs[0]._replace(boundary=Boundary(last=1))
    (gone, *others), rows = calls_of(loaded[StageKind.DIFFUSE], jobs)
    assert gone.cancelled
    assert not gone.tensors
    assert rows == [6, 4, 4, 4]
    assert all(far(a, b) < TOLERANCE for a, b in zip(others, alone[1:], strict=True))


def test_a_batch_of_which_all_are_cancelled_ends(stages: Callable[[str], Stages]) -> None:
    loaded = stages("sd")
    jobs = [a_job(loaded, "sd", s)._replace(boundary=Boundary(last=s)) for s in (1, 2)]
    with pytest.raises(CancelledAtStep):
        loaded[StageKind.DIFFUSE].run(jobs, Solo())


def test_a_cancelled_job_that_shared_no_call_leaves_the_others_too(
    stages: Callable[[str], Stages],
) -> None:
    loaded = stages("sd")
    gone = a_job(loaded, "sd", 1)._replace(boundary=Boundary(last=1))
    other = a_job(loaded, "sd", 2, shape=Shape(64, 64))
    results = loaded[StageKind.DIFFUSE].run([gone, other], Solo())
    assert [result.cancelled for result in results] == [True, False]


def test_members_that_pause_are_resumed_alone_or_together(
    stages: Callable[[str], Stages],
) -> None:
    loaded = stages("sd3")
    diffuse = loaded[StageKind.DIFFUSE]
    jobs = [a_job(loaded, "sd3", seed) for seed in (1, 2)]
    undisturbed = diffuse.run(jobs, Solo())
    paused = diffuse.run([job._replace(boundary=Boundary(pause=2)) for job in jobs], Solo())
    snapshots = [result.snapshot for result in paused]
    assert all(isinstance(snapshot, Snapshot) for snapshot in snapshots)
    resumed = [
        job._replace(
            snapshot=snapshot,
            task=msgspec.structs.replace(job.task, id=TaskId(f"{job.task.id}/again")),
        )
        for job, snapshot in zip(jobs, snapshots, strict=True)
    ]
    ended = diffuse.run(resumed, Solo())
    assert [far(a, b) for a, b in zip(ended, undisturbed, strict=True)] == [0.0, 0.0]
    [alone] = diffuse.run(resumed[:1], Solo())
    assert far(alone, undisturbed[0]) < TOLERANCE
