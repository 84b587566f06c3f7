"""The tensors of some modules laid out in a few flat buffers, and modules bound to such buffers.

A device copy of a stage is a handful of large allocations instead of a thousand small ones, so
that it moves at the speed of the link. Layouts are plain values: they travel between processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor, nn

ALIGNMENT_BYTES = 256  # what CUDA allocations have; kernels with vector loads rely on it
CACHE_LINE_BYTES = 64  # and what torch aligns CPU memory to
SEGMENT_BYTES = 256 << 20


class LayoutMismatchError(Exception):
    """Modules do not have the tensors that a layout was made of."""


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where one tensor lies: `offset` bytes into segment `segment`."""

    module: str
    name: str
    is_parameter: bool
    dtype: str
    shape: tuple[int, ...]
    segment: int
    offset: int


class Layout(msgspec.Struct, frozen=True):
    """Tensors of named modules in segments of the given sizes (bytes, aligned).

    Tied tensors share a place. A tensor lies in one segment whole.
    """

    places: tuple[Place, ...]
    segments: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments."""
        return sum(self.segments)


class _Slot(NamedTuple):
    """A tensor of a module, with where it is held."""

    module: str
    name: str
    is_parameter: bool
    tensor: Tensor


def _slots(modules: Mapping[str, nn.Module]) -> Iterator[_Slot]:
    for key, module in modules.items():
        for name, parameter in module.named_parameters(remove_duplicate=False):
            yield _Slot(key, name, is_parameter=True, tensor=parameter)
        for name, buffer in module.named_buffers(remove_duplicate=False):
            yield _Slot(key, name, is_parameter=False, tensor=buffer)


def layout_of(
    modules: Mapping[str, nn.Module],
    segment_bytes: int = SEGMENT_BYTES,
    *,
    for_cpu: bool = False,
) -> Layout:
    """Lay out every parameter and buffer, also those that no checkpoint holds.

    `for_cpu` keeps where each tensor begins within a cache line: kernels of CPUs round differently
    by that, and a stage must draw what it draws when it is loaded from its files.
    """
    spots: dict[int, tuple[int, int]] = {}
    places: list[Place] = []
    segments: list[int] = []
    for slot in _slots(modules):
        tensor = slot.tensor
        if id(tensor) not in spots:
            unit, rest = (CACHE_LINE_BYTES, _rest(tensor)) if for_cpu else (ALIGNMENT_BYTES, 0)
            end = segments[-1] if segments else 0
            offset = end + (rest - end) % unit
            if not segments or offset + tensor.nbytes > segment_bytes:
                segments.append(0)
                offset = rest
            spots[id(tensor)] = (len(segments) - 1, offset)
            segments[-1] = offset + tensor.nbytes
        dtype = str(tensor.dtype).removeprefix("torch.")
        places.append(
            Place(
                slot.module,
                slot.name,
                slot.is_parameter,
                dtype,
                tuple(tensor.shape),
                *spots[id(tensor)],
            )
        )
    return Layout(tuple(places), tuple(_rounded(size) for size in segments))


def _rest(tensor: Tensor) -> int:
    rest = tensor.data_ptr() % CACHE_LINE_BYTES
    return 0 if rest % tensor.dtype.itemsize else rest


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def pack(modules: Mapping[str, nn.Module], layout: Layout, segments: Sequence[Tensor]) -> None:
    """Copy every tensor to its place and let the modules use it there.

    Tensor by tensor, so that the originals are freed on the way: at no time are there two copies.
    """
    done: dict[tuple[int, int], nn.Parameter | Tensor] = {}
    for place in layout.places:
        module = modules[place.module]
        spot = (place.segment, place.offset)
        if spot not in done:
            view = _view(place, segments)
            view.copy_(_held(module, place))
            done[spot] = _own(view, place)
        _hold(module, place, done[spot])


def bind(modules: Mapping[str, nn.Module], layout: Layout, segments: Sequence[Tensor]) -> None:
    """Let modules of the same classes use the tensors that lie in `segments`.

    Segments on the `meta` device free what the modules used before.

    Raises:
        LayoutMismatchError: the modules have other tensors than the layout; nothing was bound.
    """
    expected = {(place.module, place.name): place.is_parameter for place in layout.places}
    found = {(slot.module, slot.name): slot.is_parameter for slot in _slots(modules)}
    if expected != found:
        differing = sorted({key for key, _kind in expected.items() ^ found.items()})
        raise LayoutMismatchError(f"{len(differing)} tensors differ, {differing[0]} among them.")
    owned: dict[tuple[int, int], nn.Parameter | Tensor] = {}
    for place in layout.places:
        spot = (place.segment, place.offset)
        if spot not in owned:
            owned[spot] = _own(_view(place, segments), place)
        _hold(modules[place.module], place, owned[spot])


def on_meta(layout: Layout) -> list[Tensor]:
    """Return segments without memory."""
    return [torch.empty(size, dtype=torch.uint8, device="meta") for size in layout.segments]


def _view(place: Place, segments: Sequence[Tensor]) -> Tensor:
    dtype: torch.dtype = getattr(torch, place.dtype)
    count = 1
    for side in place.shape:
        count *= side
    piece = segments[place.segment].narrow(0, place.offset, count * dtype.itemsize)
    return piece.view(dtype).view(place.shape)


def _own(view: Tensor, place: Place) -> nn.Parameter | Tensor:
    return nn.Parameter(view, requires_grad=False) if place.is_parameter else view


def _owner(module: nn.Module, place: Place) -> tuple[nn.Module, str]:
    path, _, leaf = place.name.rpartition(".")
    return module.get_submodule(path), leaf


def _held(module: nn.Module, place: Place) -> Tensor:
    owner, leaf = _owner(module, place)
    held: Tensor = getattr(owner, leaf)
    return held.detach()


def _hold(module: nn.Module, place: Place, tensor: nn.Parameter | Tensor) -> None:
    owner, leaf = _owner(module, place)
    table = owner._parameters if place.is_parameter else owner._buffers  # noqa: SLF001 - setattr would refuse a change of device
    table[leaf] = tensor  # type: ignore[assignment]
