"""Decodes that a team shares out, and encodes and decodes of several requests as one batch."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from engine import GenerationRequest, ModelId, RequestId, Shape
from engine.pipelines import open_pipeline
from engine.stages.base import Job, Stage, StageResult, Undisturbed
from engine.stages.registry import load_stage
from engine.stages.team import Solo, Team
from engine.stages.tiles import tiles_shared
from engine.types import MediaFormat, NodeId, StageKey, StageKind, StageTask, TaskId
from tests.support.crew import together

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def stage(model_folder: Callable[[str], Path]) -> Callable[[str, StageKind], Any]:
    loaded: dict[tuple[str, StageKind], Stage] = {}

    def load(model: str, kind: StageKind) -> Stage:
        if (model, kind) not in loaded:
            family = open_pipeline(model_folder(model)).family
            found = load_stage(model_folder(model), family, kind, torch.device("cpu"))
            loaded[model, kind] = found
        return loaded[model, kind]

    return load


def a_job(kind: StageKind, inputs: dict[str, Tensor] | None = None, **changes: Any) -> Job:
    values: dict[str, Any] = {
        "id": RequestId("r"), "model": ModelId("m"), "prompt": "a red circle",
        "shape": Shape(64, 96), "steps": 2, "guidance_scale": 3.5, "seed": 7,
        "arrival_s": 0.0, "deadline_s": 1.0,
    }  # fmt: skip
    request = GenerationRequest(**(values | changes))
    task = StageTask(
        id=TaskId("t"), request=request, node=NodeId("n"), stage=StageKey(request.model, kind),
        image_index=0, inputs=(), sequence=0, attempt=1, ready_s=0.0,
    )  # fmt: skip
    return Job(task, inputs or {}, Undisturbed())


def pixels(result: StageResult) -> np.ndarray:
    assert result.artifact is not None
    return np.array(Image.open(io.BytesIO(result.artifact.content))).astype(int)


class TestTeams:
    @pytest.mark.parametrize("size", [2, 4])
    def test_a_team_decodes_bit_for_bit_what_one_device_decodes_in_tiles(
        self, stage: Callable[[str, StageKind], Any], size: int
    ) -> None:
        vae = stage("sd3", StageKind.DECODE)._pipe.vae
        latents = torch.randn(1, 4, 12, 8, generator=torch.Generator().manual_seed(1))

        @torch.inference_mode()
        def decode(team: Team) -> Tensor:
            mine = copy.deepcopy(vae)
            with tiles_shared(mine, team):
                out: Tensor = mine.decode(latents, return_dict=False)[0]
            assert not mine.use_tiling
            return out

        leader, *_others = together(size, decode)
        whole = copy.deepcopy(vae)
        whole.enable_tiling()
        with torch.inference_mode():
            assert torch.equal(leader, whole.decode(latents, return_dict=False)[0])
            assert torch.equal(decode(Solo()), vae.decode(latents, return_dict=False)[0])

    def test_only_the_leader_has_the_picture(self, stage: Callable[[str, StageKind], Any]) -> None:
        latents = torch.randn(1, 4, 12, 8, generator=torch.Generator().manual_seed(1))
        job, decode = a_job(StageKind.DECODE, {"latents": latents}), stage("sd3", StageKind.DECODE)
        leader, other = together(2, lambda team: copy.deepcopy(decode).run([job], team)[0])
        [alone] = decode.run([job], Solo())
        assert other.artifact is None
        assert pixels(leader).shape == pixels(alone).shape == (96, 64, 3)

    @pytest.mark.parametrize(("size", "frames"), [(2, 5), (4, 3)])
    def test_a_film_whose_frames_are_shared_out_is_the_same_film(
        self, stage: Callable[[str, StageKind], Any], size: int, frames: int
    ) -> None:
        latents = torch.randn(1, 4, frames, 8, 8, generator=torch.Generator().manual_seed(1))
        shape = Shape(64, 64, frames)
        job = a_job(StageKind.DECODE, {"latents": latents}, shape=shape, media=MediaFormat.MP4)
        decode = stage("animatediff", StageKind.DECODE)
        leader, *others = together(size, lambda team: copy.deepcopy(decode).run([job], team)[0])
        [alone] = decode.run([job], Solo())
        assert all(other.artifact is None for other in others)
        assert leader.artifact.content == alone.artifact.content


class TestBatches:
    @pytest.mark.parametrize("model", ["flux", "sd3", "sd"])
    def test_prompts_that_are_encoded_together_stay_apart(
        self, stage: Callable[[str, StageKind], Any], model: str
    ) -> None:
        encode = stage(model, StageKind.ENCODE)
        jobs = [
            a_job(StageKind.ENCODE, prompt="a red circle", negative_prompt="a star"),
            a_job(StageKind.ENCODE, prompt="a green square", guidance_scale=1.0),
            a_job(StageKind.ENCODE, prompt="a blue star on a red background"),
        ]
        batched = encode.run(jobs, Solo())
        for job, result in zip(jobs, batched, strict=True):
            [alone] = encode.run([job], Solo())
            assert result.tensors.keys() == alone.tensors.keys()
            for name, tensor in alone.tensors.items():
                torch.testing.assert_close(result.tensors[name], tensor, atol=1e-5, rtol=1e-4)

    def test_outputs_of_one_size_are_decoded_together(
        self, stage: Callable[[str, StageKind], Any]
    ) -> None:
        decode, draw = stage("flux", StageKind.DECODE), torch.Generator().manual_seed(1)
        jobs = [
            a_job(StageKind.DECODE, {"latents": torch.randn(1, tokens, 16, generator=draw)},
                  shape=shape)
            for tokens, shape in [(24, Shape(64, 96)), (16, Shape(64, 64)), (24, Shape(64, 96))]
        ]  # fmt: skip
        for job, result in zip(jobs, decode.run(jobs, Solo()), strict=True):
            [alone] = decode.run([job], Solo())
            assert np.abs(pixels(result) - pixels(alone)).max() <= 1
