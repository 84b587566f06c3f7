"""Decodes that a team shares out, and encodes and decodes of several requests as one batch."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from engine.stages.team import Solo
from engine.tiling import tiling_of
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


LATENTS = torch.randn(1, 4, 12, 8, generator=torch.Generator().manual_seed(1))  # of 64x96


@contextmanager
def tiled(decode: Any, above_pixels: int) -> Iterator[None]:
    """Let pictures of more pixels be decoded in tiles, as a model's card would."""
    config = {"_class_name": "AutoencoderKL", **decode._pipe.vae.config}
    before, decode._pipe.tiling = decode._pipe.tiling, tiling_of({"vae": config}, above_pixels)
    yield
    decode._pipe.tiling = before


class TestTeams:
    @pytest.mark.parametrize("model", ["flux", "sd3", "sd"])
    def test_a_large_picture_is_the_same_file_however_many_decode_its_tiles(
        self, stage: Callable[[str, StageKind], Any], model: str
    ) -> None:
        draw = torch.Generator().manual_seed(1)
        latents = torch.randn(1, 24, 16, generator=draw) if model == "flux" else LATENTS
        job, decode = a_job(StageKind.DECODE, {"latents": latents}), stage(model, StageKind.DECODE)
        whole = decode.run([job], Solo())[0].artifact
        with tiled(decode, above_pixels=64 * 64):
            alone = decode.run([job], Solo())[0].artifact
            for size in (2, 4, 8):
                leader, *others = together(
                    size, lambda team: copy.deepcopy(decode).run([job], team)[0]
                )
                assert leader.artifact == alone
                assert all(other.artifact is None for other in others)
        assert alone != whole  # each tile is normalised by itself: that is why size alone decides
        assert decode.run([job], Solo())[0].artifact == whole

    def test_tiles_are_those_of_the_library(self, stage: Callable[[str, StageKind], Any]) -> None:
        decode = stage("sd3", StageKind.DECODE)
        job = a_job(StageKind.DECODE, {"latents": LATENTS})
        vae = copy.deepcopy(decode._pipe.vae)
        vae.enable_tiling()
        scaled = LATENTS / vae.config.scaling_factor + vae.config.shift_factor
        with torch.inference_mode():
            expected = vae.decode(scaled, return_dict=False)[0]
            with tiled(decode, above_pixels=0):
                assert torch.equal(decode._decode([LATENTS], job.task.request, Solo()), expected)

    def test_a_picture_that_is_decoded_whole_is_so_by_every_member(
        self, stage: Callable[[str, StageKind], Any]
    ) -> None:
        job, decode = (
            a_job(StageKind.DECODE, {"latents": LATENTS}),
            stage("sd3", StageKind.DECODE),
        )
        leader, other = together(2, lambda team: copy.deepcopy(decode).run([job], team)[0])
        assert leader.artifact == decode.run([job], Solo())[0].artifact
        assert other.artifact is None

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
