"""Device copies of weights that one worker opens to another on the same node, over CUDA IPC.

A copy from a peer's device goes over NVLink or PCIe without the host's memory. The lender keeps the
segments until the borrower has closed them: torch counts the references between the processes. A
CPU device has no peers: the node's host copy is as near.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import torch
from torch import Tensor


class CudaSegment(msgspec.Struct, frozen=True, array_like=True):
    """How another process opens one segment; the fields are torch's, in torch's order."""

    device: int
    handle: bytes
    size_bytes: int
    offset_bytes: int
    ref_counter_handle: bytes
    ref_counter_offset: int
    event_handle: bytes
    event_sync_required: bool


def lend_segments(segments: Sequence[Tensor]) -> bytes:
    """Return what another process needs to open flat segments of a CUDA device.

    Raises:
        RuntimeError: the driver or the allocator's settings do not allow it.
    """
    return msgspec.msgpack.encode(
        [CudaSegment(*segment.untyped_storage()._share_cuda_()) for segment in segments]
    )


def open_segments(lent: bytes) -> list[Tensor]:
    """Open the segments of another process; they are closed when the tensors are dropped.

    Raises:
        RuntimeError: the two devices cannot reach each other, or the lender is gone.
    """
    opened = []
    for segment in msgspec.msgpack.decode(lent, type=list[CudaSegment]):
        fields = msgspec.structs.astuple(segment)
        storage = torch.UntypedStorage._new_shared_cuda(*fields)  # noqa: SLF001 - as torch.multiprocessing does
        empty = torch.empty(0, dtype=torch.uint8, device=f"cuda:{segment.device}")
        opened.append(empty.set_(storage))
    return opened
