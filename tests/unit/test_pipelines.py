"""Reading model folders: what is understood, and how broken ones are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.errors import InvalidRequestError, PipelineError
from engine.pipelines import open_pipeline
from engine.types import Shape, StageKind
from tests.support.builders import a_spec


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
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(configs.get(name, {})))
        write_safetensors(tmp_path / name / "model.safetensors", [[10, 10], [5]])
    index = {"_class_name": "StableDiffusion3Pipeline", "vae": ["diffusers", "AutoencoderKL"]}
    index |= {
        n: ["x", "y"] for n in ("text_encoder", "text_encoder_2", "text_encoder_3", "transformer")
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    return tmp_path


def test_weight_bytes_are_counted_per_stage_in_the_width_they_are_loaded_in(
    sd3_folder: Path,
) -> None:
    sizes = open_pipeline(sd3_folder, dtype_bytes=2).weight_bytes
    assert sizes == {StageKind.ENCODE: 3 * 210, StageKind.DIFFUSE: 210, StageKind.DECODE: 210}


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
        ("model_index.json", '{"_class_name": "StableDiffusion3Pipeline"}', "'vae' is missing"),
        ("transformer/config.json", "{}", "'patch_size' is missing"),
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


def test_the_engine_package_starts_without_torch() -> None:
    probe = (
        "import sys, engine, engine.executors.local, schedulers.edf, schedulers.static;"
        "print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
