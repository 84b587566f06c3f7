"""Decoding a picture tile by tile, each member of a team its tiles.

The tiles, their blending and their cropping are the autoencoder's own `tiled_decode`. In a team it
runs once to learn what it asks its decoder for, the members decode that, and the leader runs it
again with the results: the picture is bit-equal to that of one device. Which pictures are decoded
so, `engine.tiling` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from engine.stages.team import Team


@contextmanager
def tiles_shared(vae: Any, team: Team) -> Iterator[None]:
    """Let an autoencoder decode what is larger than its tile in tiles, together with a team.

    The leader's results count; other members get zeros where tiles of others should be.
    """
    tiled = vae.tiled_decode

    def shared(latents: Tensor, *, return_dict: bool = True) -> Any:
        if team.size == 1:
            return tiled(latents, return_dict=return_dict)
        tiles: list[Tensor] = []
        with _decoding_by(vae, _Recorder(vae, tiles)):
            blank = tiled(latents, return_dict=return_dict)
        results = _decode_together(vae, tiles, team)
        if team.rank > 0:
            return blank
        with _decoding_by(vae, _Replay(results)):
            return tiled(latents, return_dict=return_dict)

    vae.tiled_decode, vae.use_tiling = shared, True
    try:
        yield
    finally:
        del vae.tiled_decode  # what was there is the class's own
        vae.use_tiling = False


def _decode_together(vae: Any, tiles: Sequence[Tensor], team: Team) -> list[Tensor]:
    """Return all decoded tiles on the leader, in order."""
    owners = owners_of([tile.numel() for tile in tiles], team.size)
    mine = [
        vae.decoder(tile) for tile, owner in zip(tiles, owners, strict=True) if owner == team.rank
    ]
    nothing = tiles[0].new_empty(0)
    packed = torch.cat([nothing, *(tile.reshape(-1) for tile in mine)])
    shapes = [_decoded_shape(vae, tile) for tile in tiles]
    lengths = [0] * team.size
    for shape, owner in zip(shapes, owners, strict=True):
        lengths[owner] += shape.numel() if team.rank == 0 else 0
    parts = [packed if rank == 0 else nothing for rank in range(team.size)]
    received = team.exchange(parts, [(length,) for length in lengths])
    if team.rank > 0:
        return []
    by_owner = [
        iter(flat.split([s.numel() for s, o in zip(shapes, owners, strict=True) if o == rank]))
        for rank, flat in enumerate(received)
    ]
    return [next(by_owner[o]).view(s) for s, o in zip(shapes, owners, strict=True)]


def owners_of(sizes: Sequence[int], members: int) -> list[int]:
    """Return the rank that decodes each tile: the largest first, each to who has least to do."""
    loads, owners = [0] * members, [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        rank = loads.index(min(loads))
        loads[rank] += sizes[index]
        owners[index] = rank
    return owners


def _decoded_shape(vae: Any, tile: Tensor) -> torch.Size:
    scale = vae.tile_sample_min_size // vae.tile_latent_min_size
    batch, _channels, height, width = tile.shape
    return torch.Size((batch, vae.config.out_channels, height * scale, width * scale))


@contextmanager
def _decoding_by(vae: Any, decoder: nn.Module) -> Iterator[None]:
    own, vae.decoder = vae.decoder, decoder
    try:
        yield
    finally:
        vae.decoder = own


class _Recorder(nn.Module):
    """A decoder that notes what it is asked for and answers with zeros."""

    def __init__(self, vae: Any, tiles: list[Tensor]) -> None:
        super().__init__()
        self._shape_of: Callable[[Tensor], torch.Size] = lambda tile: _decoded_shape(vae, tile)
        self._tiles = tiles

    def forward(self, tile: Tensor) -> Tensor:
        self._tiles.append(tile)
        return tile.new_zeros(self._shape_of(tile))


class _Replay(nn.Module):
    """A decoder that gives what was decoded before, in order."""

    def __init__(self, results: Sequence[Tensor]) -> None:
        super().__init__()
        self._results = iter(results)

    def forward(self, tile: Tensor) -> Tensor:
        del tile
        return next(self._results)
