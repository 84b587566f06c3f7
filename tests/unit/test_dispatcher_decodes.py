"""Films and large pictures that are decoded by several devices, and what is never shared out."""

from __future__ import annotations

import msgspec
import pytest

from engine.tiling import Tiling
from engine.types import Shape, StageKind
from schedulers.cost import CostModel
from schedulers.dispatch.knobs import Knobs
from schedulers.dispatch.trident import TridentDispatcher
from tests.support.builders import a_request
from tests.support.clusters import COG, LONG, PROFILE, SPECS, a_cluster, a_ready

FILM = LONG
DECODE = StageKind.DECODE


PICTURE = Shape(2048, 2048)
TILES = Tiling(above_pixels=1024 * 2048, cell_px=8, tile_cells=128, stride_cells=96)  # 9 of PICTURE


def cost(*, decodes_frames: bool = True, tiling: Tiling | None = None) -> CostModel:
    spec = msgspec.structs.replace(SPECS[0], decodes_frames=decodes_frames, tiling=tiling)
    return CostModel([spec], PROFILE, learn=False)


def degree(shape: Shape, model: CostModel, *, idle: int = 8, decode_degree: int = 8) -> int:
    dispatcher = TridentDispatcher(model, Knobs(decode_degree=decode_degree))
    view = a_cluster(per_node=idle)
    [launch] = dispatcher.plan([a_ready("r", shape, DECODE)], view).assignments
    return launch.degree


@pytest.mark.parametrize(("idle", "expected"), [(8, 8), (5, 4), (1, 1)])
def test_a_long_film_is_shared_out_among_what_is_idle(idle: int, expected: int) -> None:
    assert degree(FILM, cost(), idle=idle) == expected


def test_what_saves_too_little_or_is_no_film_of_single_frames_stays_on_one_device() -> None:
    assert degree(Shape(32, 32, 17), cost()) == 1
    assert degree(Shape(768, 1360), cost()) == 1
    assert degree(FILM, cost(decodes_frames=False)) == 1
    assert degree(FILM, cost(), decode_degree=1) == 1


def test_a_share_of_the_frames_takes_that_share_of_the_time() -> None:
    model, shape = cost(), msgspec.structs.replace(FILM, frames=9)
    film = a_request(model=COG, shape=shape)
    stage = SPECS[0].stage(DECODE)
    alone, shared = (model.estimate(stage, film, degree=k).duration_s for k in (1, 4))
    assert shared == pytest.approx(alone * 3 / 9)


@pytest.mark.parametrize(("idle", "expected"), [(8, 8), (5, 4), (1, 1)])
def test_the_tiles_of_a_large_picture_are_shared_out(idle: int, expected: int) -> None:
    assert degree(PICTURE, cost(decodes_frames=False, tiling=TILES), idle=idle) == expected


def test_a_picture_that_is_decoded_whole_is_not_shared_out() -> None:
    assert degree(Shape(1024, 2048), cost(decodes_frames=False, tiling=TILES)) == 1


def test_a_profiled_degree_counts_as_measured_and_beyond_it_the_largest_share_does() -> None:
    decodes = PROFILE.models[COG].stages[DECODE]
    one = msgspec.structs.replace(decodes.entries[0], shape=FILM, duration_s=8.0)
    two = msgspec.structs.replace(one, degree=2, duration_s=5.0)
    entries = (*decodes.entries, one, two)
    stages = {
        **PROFILE.models[COG].stages,
        DECODE: msgspec.structs.replace(decodes, entries=entries),
    }
    models = {COG: msgspec.structs.replace(PROFILE.models[COG], stages=stages)}
    profile = msgspec.structs.replace(PROFILE, models=models)
    spec = msgspec.structs.replace(SPECS[0], decodes_frames=True)
    model = CostModel([spec], profile, learn=False)
    film, stage = a_request(model=COG, shape=FILM), spec.stage(DECODE)
    shares = -(-FILM.frames // 4) / -(-FILM.frames // 2)
    for degree_, expected_s in ((1, 8.0), (2, 5.0), (4, 5.0 * shares)):
        estimate = model.estimate(stage, film, degree=degree_)
        assert estimate.duration_s == pytest.approx(expected_s)
