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


def profiled(**seconds: float) -> CostModel:
    """Return a cost model with profiled decodes of the film at degrees `d1`, `d2`, .."""
    decodes = PROFILE.models[COG].stages[DECODE]
    entries = tuple(
        msgspec.structs.replace(
            decodes.entries[0], shape=FILM, degree=int(name[1:]), duration_s=duration_s
        )
        for name, duration_s in seconds.items()
    )
    stage = msgspec.structs.replace(decodes, entries=(*decodes.entries, *entries))
    stages = {**PROFILE.models[COG].stages, DECODE: stage}
    models = {COG: msgspec.structs.replace(PROFILE.models[COG], stages=stages)}
    spec = msgspec.structs.replace(SPECS[0], decodes_frames=True)
    return CostModel([spec], msgspec.structs.replace(PROFILE, models=models), learn=False)


def test_a_profiled_degree_counts_as_measured_and_beyond_it_the_largest_share_does() -> None:
    model, stage = profiled(d1=8.0, d2=5.0), SPECS[0].stage(DECODE)
    film = a_request(model=COG, shape=FILM)
    shares = -(-FILM.frames // 4) / -(-FILM.frames // 2)
    for k, expected_s in ((1, 8.0), (2, 5.0), (4, 5.0 * shares)):
        assert model.estimate(stage, film, degree=k).duration_s == pytest.approx(expected_s)


def test_no_more_devices_are_taken_than_make_the_decode_shorter() -> None:
    assert degree(FILM, profiled(d1=8.0, d2=5.0, d4=5.5, d8=5.0)) == 2
    assert degree(FILM, profiled(d1=8.0, d2=9.0, d4=8.1, d8=8.0)) == 1
