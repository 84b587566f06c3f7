"""Which pictures are decoded in tiles, against what the library's autoencoder does."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL

from engine.stages.tiles import _decoding_by, _Recorder, owners_of
from engine.tiling import ABOVE_PIXELS, tiling_of
from engine.types import Shape

CONFIG = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [8, 8, 8],
    "sample_size": 64,
}


@pytest.mark.parametrize(
    "shape", [Shape(64, 64), Shape(64, 96), Shape(96, 96), Shape(200, 64), Shape(256, 256)]
)
def test_there_are_as_many_tiles_as_the_autoencoder_decodes(shape: Shape) -> None:
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        sample_size=64,
        norm_num_groups=8,
    )
    vae.enable_tiling()
    tiles: list[torch.Tensor] = []
    with _decoding_by(vae, _Recorder(vae, tiles)):
        vae.decode(torch.zeros(1, 4, shape.height_px // 4, shape.width_px // 4))
    tiling = tiling_of({"vae": CONFIG}, above_pixels=0)
    assert tiling is not None
    assert tiling.tiles(shape) == len(tiles)


def test_usual_sizes_are_decoded_whole_unless_the_card_says_otherwise() -> None:
    config = {**CONFIG, "block_out_channels": [8] * 4, "sample_size": 1024}
    usual, early = tiling_of({"vae": config}), tiling_of({"vae": config}, above_pixels=512 * 512)
    assert usual is not None
    assert early is not None
    assert ABOVE_PIXELS == 1024 * 2048
    assert [usual.tiles(Shape(s, s)) for s in (1024, 1440, 1536, 2048)] == [1, 1, 4, 9]
    assert [early.tiles(Shape(s, s)) for s in (512, 1024, 1440)] == [1, 1, 4]  # 1024: one tile


@pytest.mark.parametrize(
    "config",
    [
        {**CONFIG, "_class_name": "AutoencoderTiny"},
        {**CONFIG, "sample_size": 4},
        {**CONFIG, "sample_size": "large"},
    ],
)
def test_an_autoencoder_without_usable_tiles_decodes_everything_whole(
    config: dict[str, object],
) -> None:
    assert tiling_of({"vae": config}, above_pixels=0) is None


def test_the_largest_tiles_are_shared_out_first() -> None:
    assert owners_of([4, 4, 2, 4, 4, 2, 2, 2, 1], 2) == [0, 1, 0, 0, 1, 1, 0, 1, 0]
    owners = owners_of([4, 4, 2, 4, 4, 2, 2, 2, 1], 4)
    assert sorted(owners) == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert owners_of([4], 2) == [0]
