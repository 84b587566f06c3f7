"""Reading model folders: what is understood, and how broken ones are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.cards import Limits
from engine.errors import InvalidRequestError, PipelineError
from engine.pipelines import open_pipeline
from engine.types import Shape, StageKind
from tests.support.builders import a_spec

TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


def write_safetensors(path: Path, shapes: list[list[int]]) -> None:
    entries = {
        f"t{i}": {"dtype": "F32", "shape": s, "data_offsets": [0, 0]} for i, s in enumerate(shapes)
    }
    header = json.dumps(entries | {"__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)


@pytest.fixture
def sd3_folder(tmp_path: Path) -> Path:
    """A folder with every file that is read, and no weights behind the headers."""
    configs: dict[str, dict[str, Any]] = {
        "vae": {"block_out_channels": [16, 16, 16, 16]},
        "transformer": {"patch_size": 2, "pos_embed_max_size": 32},
    }
    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    for name in (*encoders, "transformer", "vae"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(configs.get(name, {})))
        write_safetensors(tmp_path / name / "model.safetensors", [[10, 10], [5]])
    for name in (*TOKENIZERS, "scheduler"):
        (tmp_path / name).mkdir()
    (tmp_path / "scheduler/scheduler_config.json").write_text("{}")
    index: dict[str, Any] = {key: ["transformers", "Any"] for key in (*encoders, *TOKENIZERS)}
    index |= {
        "_class_name": "StableDiffusion3Pipeline",
        "vae": ["diffusers", "AutoencoderKL"],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    return tmp_path


def test_weight_bytes_are_counted_per_stage_in_the_width_they_are_loaded_in(
    sd3_folder: Path,
) -> None:
    sizes = open_pipeline(sd3_folder, dtype_bytes=2).weight_bytes
    assert sizes == {StageKind.ENCODE: 3 * 210, StageKind.DIFFUSE: 210, StageKind.DECODE: 210}


def test_precision_variants_beside_the_weights_are_not_counted_twice(sd3_folder: Path) -> None:
    for variant in ("model.fp16.safetensors", "model.non_ema.safetensors", "model.bin"):
        write_safetensors(sd3_folder / "vae" / variant, [[1000]])
    assert open_pipeline(sd3_folder).weight_bytes[StageKind.DECODE] == 4 * 105


def test_sharded_weights_are_counted_by_their_index(sd3_folder: Path) -> None:
    folder = sd3_folder / "transformer"
    (folder / "model.safetensors").unlink()
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name in names:
        write_safetensors(folder / name, [[50]])
    index = {"weight_map": {"a": names[0], "b": names[0], "c": names[1]}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert open_pipeline(sd3_folder).weight_bytes[StageKind.DIFFUSE] == 4 * 100


def test_weights_in_another_format_are_refused_by_name(sd3_folder: Path) -> None:
    (sd3_folder / "vae" / "model.safetensors").rename(sd3_folder / "vae" / "model.bin")
    with pytest.raises(PipelineError, match=r"only model\.bin; save the model again"):
        open_pipeline(sd3_folder)


def test_weights_that_were_cut_short_are_refused_before_anything_starts(sd3_folder: Path) -> None:
    file = sd3_folder / "vae" / "model.safetensors"
    header = json.dumps({"t": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}}).encode()
    whole = len(header).to_bytes(8, "little") + header + bytes(20)
    file.write_bytes(whole)
    assert open_pipeline(sd3_folder).weight_bytes[StageKind.DECODE] == 20
    for wrong in (whole[:-1], whole + b"x"):
        file.write_bytes(wrong)
        with pytest.raises(
            PipelineError, match=rf"{len(wrong)} bytes and should have {len(whole)}"
        ):
            open_pipeline(sd3_folder)


def test_weights_that_were_not_copied_are_named(sd3_folder: Path) -> None:
    (sd3_folder / "transformer" / "model.safetensors").unlink()
    with pytest.raises(PipelineError, match=r"transformer has a config\.json and no weights"):
        open_pipeline(sd3_folder)
    for file in (sd3_folder / "text_encoder").iterdir():
        file.unlink()
    (sd3_folder / "text_encoder").rmdir()
    with pytest.raises(PipelineError, match=r"text_encoder.config\.json is missing"):
        open_pipeline(sd3_folder)


def test_a_component_that_was_never_there_is_not_missed(sd3_folder: Path) -> None:
    whole = open_pipeline(sd3_folder).weight_bytes[StageKind.ENCODE]
    index = json.loads((sd3_folder / "model_index.json").read_text())
    index["text_encoder_3"] = [None, None]
    (sd3_folder / "model_index.json").write_text(json.dumps(index))
    for file in (sd3_folder / "text_encoder_3").iterdir():
        file.unlink()
    (sd3_folder / "text_encoder_3").rmdir()
    assert open_pipeline(sd3_folder).weight_bytes[StageKind.ENCODE] == whole * 2 // 3


def test_a_card_whose_defaults_the_model_cannot_draw_is_refused(sd3_folder: Path) -> None:
    (sd3_folder / "trident.json").write_text('{"defaults": {"width_px": 65, "height_px": 64}}')
    with pytest.raises(PipelineError, match=r"defaults in .*trident\.json do not fit"):
        open_pipeline(sd3_folder)


def test_the_default_size_is_the_one_the_denoiser_was_made_for(sd3_folder: Path) -> None:
    config = {"patch_size": 2, "pos_embed_max_size": 32, "sample_size": 16}
    (sd3_folder / "transformer" / "config.json").write_text(json.dumps(config))
    assert open_pipeline(sd3_folder).default_shape == Shape(128, 128)


def test_sizes_follow_from_the_autoencoder_and_the_position_embedding(sd3_folder: Path) -> None:
    spec = open_pipeline(sd3_folder)
    assert (spec.size_multiple_px, spec.max_side_px) == (16, 512)
    assert spec.default_shape == Shape(512, 512)


def test_trident_json_sets_defaults_and_limits(sd3_folder: Path) -> None:
    card = {"defaults": {"width_px": 96, "height_px": 64, "steps": 3, "guidance_scale": 0.0}}
    (sd3_folder / "trident.json").write_text(json.dumps(card | {"limits": {"max_pixels": 9999}}))
    spec = open_pipeline(sd3_folder, model_id="mine")
    assert (spec.id, spec.default_shape, spec.default_steps) == ("mine", Shape(96, 64), 3)
    assert (spec.default_guidance, spec.limits.max_pixels) == (0.0, 9999)


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("model_index.json", None, "model_index.json is missing"),
        ("model_index.json", "{", "cannot be read as JSON"),
        ("model_index.json", "[]", "must hold a JSON object, not list"),
        (
            "model_index.json",
            '{"_class_name": "WanPipeline"}',
            "'WanPipeline', which is not served",
        ),
        (
            "model_index.json",
            '{"_class_name": "StableDiffusion3Pipeline"}',
            "names no tokenizer, text_encoder, .* vae, without which a StableDiffusion3Pipeline",
        ),
        ("transformer/config.json", "{}", "'patch_size' is missing"),
        ("transformer/config.json", "{", "transformer/config.json cannot be read as JSON"),
        ("text_encoder/config.json", "{", "text_encoder/config.json cannot be read as JSON"),
        ("text_encoder_2/config.json", None, "text_encoder_2/config.json is missing"),
        ("tokenizer/tokenizer_config.json", "[]", "must hold a JSON object, not list"),
        ("scheduler/scheduler_config.json", None, "scheduler_config.json is missing"),
        ("vae/config.json", None, "is missing"),
        ("trident.json", '{"defaults": {"steps": "many"}}', "trident.json is malformed"),
        ("vae/model.safetensors", "short", "not a readable safetensors file"),
    ],
)
def test_a_broken_folder_is_refused_naming_the_file(
    sd3_folder: Path, file: str, content: str | None, complaint: str
) -> None:
    if content is None:
        (sd3_folder / file).unlink()
    else:
        (sd3_folder / file).write_text(content)
    with pytest.raises(PipelineError, match=complaint):
        open_pipeline(sd3_folder)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"_class_name": "FluxPipeline"}, "has a SD3Transformer2DModel as transformer, but a Flux"),
        ({"_class_name": "StableDiffusionPipeline"}, "names no unet"),
        ({"transformer": ["diffusers", "FluxTransformer2DModel"]}, "is _class_name the right one"),
        ({"vae": "AutoencoderKL"}, r"vae must be \[library, class\], not 'AutoencoderKL'"),
        ({"text_encoder_2": [None, None]}, "names no text_encoder_2"),
    ],
)
def test_a_folder_of_another_pipeline_than_it_says_is_refused(
    sd3_folder: Path, changes: dict[str, Any], complaint: str
) -> None:
    path = sd3_folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(PipelineError, match=complaint):
        open_pipeline(sd3_folder)


@pytest.mark.parametrize(
    ("shape", "complaint"),
    [
        (Shape(65, 64), "multiples of 16"),
        (Shape(0, 64), "at least 16"),
        (Shape(-16, 64), "at least 16"),
        (Shape(1024, 1024), "at most 262144"),
        (Shape(2048, 16), "sides of at most 1024"),
    ],
)
def test_a_size_that_the_model_cannot_draw_is_refused(shape: Shape, complaint: str) -> None:
    with pytest.raises(InvalidRequestError, match=complaint) as caught:
        a_spec().check_shape(shape)
    assert caught.value.param == "size"


def test_a_size_below_the_models_least_is_refused() -> None:
    spec = a_spec(limits=Limits(min_pixels=128 * 128))
    spec.check_shape(Shape(128, 128))
    with pytest.raises(InvalidRequestError, match="at least 16384") as caught:
        spec.check_shape(Shape(112, 128))
    assert caught.value.param == "size"


def test_the_engine_package_starts_without_torch() -> None:
    probe = (
        "import sys, engine, engine.executors.local, schedulers.policies, schedulers.static;"
        "print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
