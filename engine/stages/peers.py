"""Memory of a device that one worker opens to another on the same node, over CUDA IPC.

A copy from a peer's device goes over NVLink or PCIe without the host's memory. It is opened in the
borrower's own context: in one on the lender's device it would take some 400 MB there that no ledger
knows. Nothing else of it is the borrower's, so nothing is booked: the bytes are the lender's, who
keeps them until the borrower has closed them (torch counts the references between the processes;
what a borrower that died had open is counted as closed when the controller says so).
A CPU device has no peers: the node's host memory is as near.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import msgspec
import structlog
import torch
from torch import Tensor

from engine.stages.windows import Window, Windows

log = structlog.get_logger(__name__)


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
    """Open the segments of another process for this thread's device; dropped tensors close them.

    Raises:
        RuntimeError: the two devices cannot reach each other, or the lender is gone.
    """
    opened, here = [], torch.cuda.current_device()
    for segment in msgspec.msgpack.decode(lent, type=list[CudaSegment]):
        _lender, *others = msgspec.structs.astuple(segment)
        storage = torch.UntypedStorage._new_shared_cuda(here, *others)  # noqa: SLF001 - as torch.multiprocessing does
        empty = torch.empty(0, dtype=torch.uint8, device=f"cuda:{here}")
        opened.append(empty.set_(storage))
    return opened


def reclaim_segments(lent: bytes) -> None:
    """Count lent segments as closed by a process that died, or their memory would never be freed.

    To be called before they are dropped; harmless if they were closed in time.
    """
    for segment in msgspec.msgpack.decode(lent, type=list[CudaSegment]):
        torch.UntypedStorage._release_ipc_counter_cuda(  # noqa: SLF001 - as torch.multiprocessing does
            segment.ref_counter_handle, segment.ref_counter_offset
        )


def windows_of(device: torch.device, folder: Path, size_bytes: int) -> Windows | None:
    """Return the windows of a node that describes them in `folder`; None if this is its only device."""
    if device.type != "cuda" or torch.cuda.device_count() == 1:
        return None
    path = folder / f"{str(device).replace(':', '-')}-{uuid4().hex}"
    memory = torch.empty(size_bytes, dtype=torch.uint8, device=device)
    own: Window | None = None
    try:
        own = Window(path, memory, lambda memory: lend_segments([memory]))
    except RuntimeError as error:  # the driver or the allocator's settings do not allow it
        log.warning("window_not_lent", device=str(device), detail=str(error))
    return Windows(device, lambda lent: open_segments(lent)[0], own)
