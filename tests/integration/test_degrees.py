"""A diffuse at any degree ends with the latent of degree 1, up to rounding.

Members are threads with models of their own, so that every degree is tested in one process. The
tolerances are those that docs/teams.md states.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import GenerationRequest, ModelId, RequestId, Shape
from engine.pipelines import open_pipeline
from engine.stages.base import Job, Stage, Undisturbed
from engine.stages.registry import load_stage
from engine.stages.team import Solo, Team
from engine.types import MediaFormat, NodeId, StageKey, StageKind, StageTask, TaskId
from tests.support.crew import together

SHIPPED = Path(__file__).parents[2] / "models"
# of the largest number in the latent; float32 and one thread
TOLERANCE = 5e-6
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def a_job(model: str, kind: StageKind, inputs: dict[str, Tensor], **changes: Any) -> Job:
    values: dict[str, Any] = {
        "id": RequestId("r"), "model": ModelId(model),
        "prompt": "a red circle on a blue background", "shape": Shape(64, 96), "steps": 2,
        "guidance_scale": 3.5, "seed": 7, "arrival_s": 0.0, "deadline_s": 1.0,
    }  # fmt: skip
    request = GenerationRequest(**(values | changes))
    task = StageTask(
        id=TaskId("t"), request=request, node=NodeId("n"), stage=StageKey(request.model, kind),
        image_index=0, inputs=(), sequence=0, attempt=1, ready_s=0.0,
    )  # fmt: skip
    return Job(task, inputs, Undisturbed())


def a_film(frames: int) -> dict[str, Any]:
    return {"shape": Shape(64, 64, frames), "media": MediaFormat.MP4}


@pytest.fixture(scope="module")
def stages(model_folder: Callable[[str], Path]) -> Callable[[str], dict[StageKind, Stage]]:
    loaded: dict[str, dict[StageKind, Stage]] = {}

    def load(model: str) -> dict[StageKind, Stage]:
        if model not in loaded:
            folder = SHIPPED / model if (SHIPPED / model).exists() else model_folder(model)
            family = open_pipeline(folder).family
            loaded[model] = {
                kind: load_stage(folder, family, kind, torch.device("cpu")) for kind in StageKind
            }
        return loaded[model]

    return load


@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize(
    ("model", "degree", "changes"),
    [
        ("flux", 2, {}), ("flux", 4, {}), ("flux", 8, {}),  # of 4 heads: 8 goes round a ring
        ("sd3", 2, {}), ("sd3", 8, {}),
        ("sd", 2, {}), ("shapes", 2, {}),
        ("animatediff", 2, a_film(5)), ("animatediff", 4, a_film(5)), ("animatediff", 8, a_film(5)),
        ("animatediff", 4, a_film(1)),  # fewer frames than members
        ("motion", 4, a_film(9)),
    ],
)  # fmt: skip
def test_every_degree_agrees_with_degree_one(
    stages: Callable[[str], dict[StageKind, Stage]],
    model: str,
    degree: int,
    changes: dict[str, Any],
    guidance: float,
) -> None:
    mine = stages(model)
    changes = changes | {"guidance_scale": guidance}
    encode = a_job(model, StageKind.ENCODE, {}, **changes)
    [encoded] = mine[StageKind.ENCODE].run([encode], Solo())
    job = a_job(model, StageKind.DIFFUSE, dict(encoded.tensors), **changes)
    diffuse = mine[StageKind.DIFFUSE]

    def latents(stage: Stage, team: Team) -> Tensor:
        return stage.run([job], team)[0].tensors["latents"]

    alone = latents(diffuse, Solo())
    together_ = together(degree, lambda team: latents(copy.deepcopy(diffuse), team))
    assert all(torch.equal(member, together_[0]) for member in together_)
    difference = (together_[0] - alone).abs().max() / alone.abs().max()
    assert difference <= TOLERANCE
    assert torch.equal(latents(diffuse, Solo()), alone)  # nothing is left of the team
