"""Which pictures are decoded tile by tile, and in how many tiles: a matter of model and size alone.

The same seed must give the same bytes whoever decodes which tile, so a picture is decoded in tiles
on one device if it is on several. That is another picture than a whole decode, since each tile is
normalised by itself; so it is done only from a size on where a whole decode takes gigabytes (the
first guess is 2 kB a pixel), or where the model's card says. Tiles are those of diffusers'
`AutoencoderKL`: squares of the size that it was trained on, which overlap by a quarter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from engine.families import vae_scale_factor
from engine.types import Shape

ABOVE_PIXELS = 2 << 20  # 1024 x 2048 is still decoded whole
_AUTOENCODER = "AutoencoderKL"
_OVERLAP = 0.25


class Tiling(msgspec.Struct, frozen=True):
    """The tiles of one model's autoencoder.

    Attributes:
        above_pixels: pictures of no more pixels are decoded whole.
        cell_px: pixels that a cell of the latent stands for, along one side.
        tile_cells: sides of a tile, which begin `stride_cells` apart.
    """

    above_pixels: int
    cell_px: int
    tile_cells: int
    stride_cells: int

    def tiles(self, shape: Shape) -> int:
        """Return how many tiles a picture has; 1 if it is decoded whole."""
        sides = shape.width_px // self.cell_px, shape.height_px // self.cell_px
        if shape.pixels <= self.above_pixels or max(sides) <= self.tile_cells:
            return 1
        columns, rows = (-(-side // self.stride_cells) for side in sides)
        return columns * rows

    @property
    def tile_pixels(self) -> int:
        """Pixels of a whole tile."""
        return (self.tile_cells * self.cell_px) ** 2


def tiling_of(
    configs: Mapping[str, Mapping[str, Any]], above_pixels: int | None = None
) -> Tiling | None:
    """Return the tiling of a folder with these configurations; None if its autoencoder has none."""
    config = configs["vae"]
    if config.get("_class_name") != _AUTOENCODER:
        return None
    sample_px = config.get("sample_size", 32)
    sample_px = sample_px[0] if isinstance(sample_px, list) else sample_px
    cell_px = vae_scale_factor(configs)
    tile = sample_px // cell_px if isinstance(sample_px, int) else 0
    stride = int(tile * (1 - _OVERLAP))
    if stride < 1:
        return None
    above = ABOVE_PIXELS if above_pixels is None else above_pixels
    return Tiling(above, cell_px, tile, stride)
