"""Beginning with a picture: bit for bit what the image-to-image and inpaint pipelines draw."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import av
import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from engine import GenerationRequest, ModelId, RequestId, Shape
from engine.families import family_named
from engine.graph import StageNode
from engine.pipelines import build, open_pipeline
from engine.stages import random_model
from engine.stages.base import Job, Undisturbed
from engine.stages.media import write_image, write_video
from engine.stages.registry import load_stage
from engine.stages.team import Solo
from engine.types import MediaFormat, Source, StageKind, StageTask, TaskId

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers
STEPS, SEED = 6, 7
WIDTH, HEIGHT = 96, 64
PIPELINES = {
    ("sd", False): "StableDiffusionImg2ImgPipeline",
    ("sd", True): "StableDiffusionInpaintPipeline",
    ("sd3", False): "StableDiffusion3Img2ImgPipeline",
    ("sd3", True): "StableDiffusion3InpaintPipeline",
    ("flux", False): "FluxImg2ImgPipeline",
    ("flux", True): "FluxInpaintPipeline",
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def picture(seed: int = 5) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def mask() -> Image.Image:
    painted = np.zeros((HEIGHT, WIDTH), np.uint8)
    painted[16:48, 24:72] = 255
    return Image.fromarray(painted)


def png(image: Image.Image) -> bytes:
    return write_image(image, MediaFormat.PNG, 100)


def request_of(folder: Path, *, strength: float, masked: bool, **changes: Any) -> GenerationRequest:
    spec = open_pipeline(folder)
    values: dict[str, Any] = {
        "id": RequestId("edit"),
        "model": ModelId(spec.id),
        "prompt": "a red circle",
        "shape": Shape(WIDTH, HEIGHT),
        "steps": spec.steps_from(STEPS, strength),
        "guidance_scale": 3.5,
        "seed": SEED,
        "arrival_s": 0.0,
        "deadline_s": 1.0,
        "source": Source(
            image="image",
            mask="mask" if masked else None,
            strength=strength,
            schedule_steps=STEPS,
        ),
    }
    return GenerationRequest(**(values | changes))


def by_stages(folder: Path, request: GenerationRequest, files: Mapping[str, bytes]) -> bytes:
    """Run the request's graph node by node, each stage loaded alone."""
    spec = open_pipeline(folder)
    graph, device = build(spec, request), torch.device("cpu")
    outputs: dict[str, Mapping[str, Tensor]] = {}
    stages = {k: load_stage(folder, spec.family, k, device) for k in StageKind}
    given = {k: torch.frombuffer(bytearray(v), dtype=torch.uint8) for k, v in files.items()}
    for name in graph.order:
        node = graph.nodes[name]
        parents = [outputs[parent] for parent in graph.parents[name]]
        inputs = {k: v for parent in parents for k, v in parent.items()}
        job = Job(task_of(request, node), inputs or given, Undisturbed())
        [result] = stages[node.stage.kind].run([job], Solo())
        outputs[name] = result.tensors
        if result.artifact is not None:
            return result.artifact.content
    raise AssertionError


def task_of(request: GenerationRequest, node: StageNode) -> StageTask:
    return StageTask(
        id=TaskId(node.id),
        request=request,
        node=node.id,
        stage=node.stage,
        image_index=node.image_index,
        inputs=(),
        sequence=0,
        attempt=1,
        ready_s=0.0,
        purpose=node.purpose,
    )


def stock(folder: Path, name: str, **arguments: Any) -> Any:
    pipe = getattr(diffusers, name).from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        prompt="a red circle",
        num_inference_steps=STEPS,
        guidance_scale=3.5,
        generator=torch.Generator().manual_seed(SEED),
        **arguments,
    )


@pytest.mark.parametrize("strength", [0.55, 1.0])
@pytest.mark.parametrize("kind", ["image-to-image", "inpaint"])
@pytest.mark.parametrize("family", ["sd", "sd3", "flux"])
def test_an_edit_is_bit_for_bit_the_librarys(
    model_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    kind: str,
    strength: float,
) -> None:
    folder, masked = model_folder(family), kind == "inpaint"
    if (family, masked) == ("sd3", True):
        folder = wider(folder, monkeypatch)  # the library's takes models of 16 channels only
    files = {"image": png(picture())} | ({"mask": png(mask())} if masked else {})
    ours = by_stages(folder, request_of(folder, strength=strength, masked=masked), files)
    extras: dict[str, Any] = {"mask_image": mask()} if masked else {}
    if masked or family != "sd":
        extras |= {"height": HEIGHT, "width": WIDTH}
    if (family, masked) == ("sd3", True):  # it forgets the shift when it decodes: add it there
        correct_shift(monkeypatch)
    result = stock(folder, PIPELINES[family, masked], image=picture(), strength=strength, **extras)
    assert ours == png(result.images[0])


def wider(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a model like SD3's random one with 16 latent channels, as real ones have."""
    wide = folder.with_name("sd3-16")
    if not wide.exists():
        transformer, autoencoder = random_model.SD3Transformer2DModel, random_model._vae
        monkeypatch.setattr(
            random_model,
            "SD3Transformer2DModel",
            lambda **config: transformer(**config | {"in_channels": 16, "out_channels": 16}),
        )
        monkeypatch.setattr(random_model, "_vae", lambda **_config: autoencoder(16))
        random_model.write_model(wide, "sd3", seed=1)
    return wide


def correct_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = diffusers.AutoencoderKL.decode

    def shifted(self: Any, latents: Tensor, **options: Any) -> Any:
        options.pop("generator", None)
        return decode(self, latents + self.config.shift_factor, **options)

    monkeypatch.setattr(diffusers.AutoencoderKL, "decode", shifted)


def test_the_pictures_of_one_edit_share_their_encode_and_differ(
    model_folder: Callable[[str], Path],
) -> None:
    folder = model_folder("sd")
    request = request_of(folder, strength=0.55, masked=False, n=2)
    graph = build(open_pipeline(folder), request)
    assert [n for n in graph.order if n.startswith("encode")] == ["encode", "encode-image"]
    one = by_stages(folder, request, {"image": png(picture())})
    other = by_stages(
        folder,
        request_of(folder, strength=0.55, masked=False, seed=SEED + 1),
        {"image": png(picture())},
    )
    assert one != other


@pytest.mark.parametrize("begins_with", ["picture", "film"])
def test_a_video_begins_with_a_picture_or_another_video(
    model_folder: Callable[[str], Path], begins_with: str
) -> None:
    folder, frames, film = model_folder("animatediff"), 4, begins_with == "film"
    stills = [picture(seed) for seed in range(frames)] if film else [picture()] * frames
    content = png(stills[0])
    if film:
        content = write_video(np.stack([np.asarray(s) / 255 for s in stills]), fps=8)
        stills = frames_of(content)
    request = request_of(
        folder,
        strength=0.55,
        masked=False,
        shape=Shape(WIDTH, HEIGHT, frames),
        media=MediaFormat.MP4,
    )
    ours = by_stages(folder, request, {"image": content})
    result = stock(
        folder,
        "AnimateDiffVideoToVideoPipeline",
        video=stills,
        strength=0.55,
        height=HEIGHT,
        width=WIDTH,
        output_type="np",
    )
    assert ours == write_video(result.frames[0], request.fps)


def frames_of(content: bytes) -> list[Image.Image]:
    with av.open(io.BytesIO(content), "r") as film:
        return [frame.to_image() for frame in film.decode(video=0)]


def test_the_librarys_two_ways_to_round_are_kept(model_folder: Callable[[str], Path]) -> None:
    assert (family_named("sd").floors_strength, family_named("sd3").floors_strength) == (
        True,
        False,
    )
    sd, sd3 = (open_pipeline(model_folder(family)) for family in ("sd", "sd3"))
    assert (sd.steps_from(10, 0.55), sd3.steps_from(10, 0.55)) == (5, 6)
