"""The profiles that ship say what was published, and what is assumed around it hangs together."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.pipelines import build
from engine.types import MediaFormat, Modality, Shape, StageKey, StageKind
from schedulers.cost import CostModel
from schedulers.profile import (
    BUNDLED,
    ModelProfile,
    Profile,
    ProfileError,
    Provenance,
    load_profile,
    specs_of,
)
from schedulers.profiles.build import BUILDERS, built, main
from schedulers.profiles.sourcing import SOURCES
from tests.support.builders import a_request

ENCODE, DIFFUSE, DECODE = StageKind.ENCODE, StageKind.DIFFUSE, StageKind.DECODE
L20 = load_profile("l20")
CAPACITY = L20.node.memory_bytes - L20.node.reserve_bytes
CLASSES = [(name, shape) for name, model in L20.models.items() for shape in model.shapes]
# What a device of the primary holds: everything, but for HunyuanVideo, whose encoder is elsewhere.
PRIMARY = {"hunyuanvideo": (DIFFUSE, DECODE)}
COG, HUNYUAN = "cogvideox1.5-5b", "hunyuanvideo"


def primary_bytes(model: str, shape: Shape, degree: int) -> int:
    """What a diffuse stage and its neighbours' weights take on each device of a team."""
    weights = sum(L20.models[model].stages[k].weight_bytes for k in PRIMARY.get(model, StageKind))
    request = a_request(model=model, shape=shape)
    cost = CostModel(specs_of(L20), L20)
    return (
        weights + cost.estimate(StageKey(model, DIFFUSE), request, degree=degree).activation_bytes
    )


def step_s(profile: Profile, model: str, shape: Shape) -> list[float]:
    entries = profile.models[model].stages[DIFFUSE].entries
    return [e.duration_s for e in sorted(entries, key=lambda e: e.degree) if e.shape == shape]


@pytest.mark.parametrize("name", BUILDERS)
def test_the_committed_file_is_what_the_program_builds(name: str) -> None:
    assert built(name) == (SOURCES.parent / f"{name}.json").read_text()


def test_the_program_writes_the_files_and_says_when_they_are_outdated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("schedulers.profiles.build.HERE", tmp_path)
    assert main(["--check"]) == 1
    assert main([]) == 0
    assert main(["--check"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "h100.json is up to date"


def test_every_profile_that_ships_can_be_loaded_by_its_name() -> None:
    assert [load_profile(name).name for name in BUNDLED] == list(BUNDLED)


def test_published_sizes_are_turned_from_height_first_to_width_first() -> None:
    assert step_s(L20, COG, Shape(432, 768, 17)) == [1.19, 0.763, 0.45, 0.3]
    assert step_s(L20, COG, Shape(1360, 768, 81)) == [30.5, 17.75, 9.1, 4.75]
    assert step_s(L20, HUNYUAN, Shape(1280, 720, 129)) == [118, 64.48, 31.92, 16.35]
    assert step_s(L20, HUNYUAN, Shape(544, 960, 17)) == [2.77, 1.83, 1.02, 0.68]


def test_the_l20_has_four_models_with_28_sizes_at_four_degrees() -> None:
    assert {name: len(model.shapes) for name, model in L20.models.items()} == {
        "sd3": 5,
        "flux1": 7,
        COG: 8,
        HUNYUAN: 8,
    }
    assert {model.degrees for model in L20.models.values()} == {(1, 2, 4, 8)}


def test_a_corrected_misprint_is_no_published_figure() -> None:
    entries = L20.models[COG].stages[DIFFUSE].entries
    [corrected] = [e for e in entries if e.provenance is Provenance.ASSUMED]
    assert (corrected.shape, corrected.degree, corrected.duration_s) == (
        Shape(432, 768, 33),
        2,
        1.36,
    )


def test_what_nobody_published_is_marked_assumed() -> None:
    for model in L20.models.values():
        for kind in (ENCODE, DECODE):
            assert {e.provenance for e in model.stages[kind].entries} == {Provenance.ASSUMED}
        for stage in model.stages.values():
            assert {e.memory_provenance for e in stage.entries} == {Provenance.ASSUMED}
            assert set(stage.provenance.values()) == {Provenance.ASSUMED}


@pytest.mark.parametrize(
    ("model", "total"),
    [("sd3", 14.0e9), ("flux1", 34.2e9), (COG, 21.0e9), (HUNYUAN, 42.5e9)],
)
def test_weights_add_up(model: str, total: float) -> None:
    assert L20.models[model].weight_bytes == total


def test_a_swap_of_hunyuans_encoder_and_transformer_takes_what_the_links_allow() -> None:
    stages = L20.models[HUNYUAN].stages
    assert stages[ENCODE].load_host_s + stages[DIFFUSE].load_host_s == pytest.approx(1.68)


@pytest.mark.parametrize(
    ("model", "shape", "degree"),
    [
        ("flux1", Shape(1024, 1024), 1),
        ("flux1", Shape(2048, 2048), 2),
        ("flux1", Shape(4096, 4096), 2),
        ("sd3", Shape(1536, 1536), 1),
        (COG, Shape(432, 768, 33), 1),
        (COG, Shape(1360, 768, 17), 2),
        (COG, Shape(1360, 768, 33), 4),
        (COG, Shape(1360, 768, 65), 8),
        (HUNYUAN, Shape(1280, 720, 17), 1),
        (HUNYUAN, Shape(1280, 720, 33), 2),
        (HUNYUAN, Shape(1280, 720, 65), 4),
        (HUNYUAN, Shape(1280, 720, 129), 8),
        (HUNYUAN, Shape(544, 960, 65), 4),
    ],
)
def test_memory_forces_the_published_degrees(model: str, shape: Shape, degree: int) -> None:
    assert L20.models[model].min_degree(shape) == degree


@pytest.mark.parametrize(("model", "shape"), CLASSES, ids=str)
def test_memory_agrees_with_the_forced_degree(model: str, shape: Shape) -> None:
    """Every degree from the forced one on fits on its primary, half the forced one does not."""
    least = L20.models[model].min_degree(shape)
    for degree in (1, 2, 4, 8):
        assert (primary_bytes(model, shape, degree) <= CAPACITY) == (degree >= least)


@pytest.mark.parametrize("shape", L20.models[HUNYUAN].shapes, ids=str)
def test_hunyuan_never_fits_beside_its_encoder(shape: Shape) -> None:
    encoder = L20.models[HUNYUAN].stages[ENCODE].weight_bytes
    assert primary_bytes(HUNYUAN, shape, 8) + encoder > CAPACITY


@pytest.mark.parametrize(("model", "shape"), CLASSES, ids=str)
def test_encode_and_decode_fit_where_their_weights_are(model: str, shape: Shape) -> None:
    profiled = L20.models[model]
    holds = sum(profiled.stages[k].weight_bytes for k in PRIMARY.get(model, StageKind))
    cost = CostModel(specs_of(L20), L20)
    request = a_request(model=model, shape=shape)
    decode = cost.estimate(StageKey(model, DECODE), request).activation_bytes
    encode = cost.estimate(StageKey(model, ENCODE), request, batch=8).activation_bytes
    assert decode <= min(6e9, CAPACITY - holds)
    assert encode <= min(2e9, CAPACITY - profiled.stages[ENCODE].weight_bytes)


def test_h100_has_degrees_only_where_they_were_published() -> None:
    degrees = {name: model.degrees for name, model in load_profile("h100").models.items()}
    assert degrees == {
        "flux1": (1, 2, 4),
        "flux2": (1, 2),
        "flux2-klein-4b": (1,),
        "flux2-klein-base-4b": (1,),
        "qwen-image": (1, 2),
        "z-image-turbo": (1, 2),
        "hunyuanvideo": (1, 2, 4, 8),
    }


def test_h100_steps_are_the_published_times_over_the_steps() -> None:
    h100 = load_profile("h100")
    assert step_s(h100, HUNYUAN, Shape(1280, 720, 129)) == [38.08, 18.5, 10.28, 6.76]
    assert step_s(h100, "qwen-image", Shape(1024, 1024)) == [0.248042, 0.192968]


@pytest.mark.parametrize("name", BUNDLED)
def test_profiled_models_have_specs_that_an_engine_can_run(name: str) -> None:
    profile = load_profile(name)
    for spec in specs_of(profile):
        model: ModelProfile = profile.models[spec.id]
        assert sum(spec.weight_bytes.values()) == model.weight_bytes
        media = MediaFormat.MP4 if spec.modality is Modality.VIDEO else MediaFormat.PNG
        frames = 500 if spec.modality is Modality.VIDEO else 1
        for shape in (*model.shapes, Shape(8191, 8193, frames)):
            request = a_request(model=spec.id, shape=shape, media=media, steps=1000)
            assert len(build(spec, request).nodes) == 3


def test_specs_come_in_the_order_asked_for() -> None:
    assert [spec.id for spec in specs_of(L20, [HUNYUAN, "sd3"])] == [HUNYUAN, "sd3"]


def test_a_model_that_was_not_profiled_is_named_with_those_that_were() -> None:
    with pytest.raises(ProfileError, match="Profile l20 has no model 'wan'; it has sd3, flux1"):
        specs_of(L20, ["wan"])
