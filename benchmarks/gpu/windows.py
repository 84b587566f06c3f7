"""Hand-offs between two processes of one GPU: by a window over CUDA IPC, and by their files.

The other process makes them and is killed in the end: what lay in its window is then read from the
files. On a CPU device a shared file stands for the window's memory. Run by `benchmarks.gpu.run`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import torch
from torch import Tensor

from benchmarks.gpu.checks import seconds
from engine.handoff import WINDOW_BYTES
from engine.stages.peers import lend_segments, open_segments
from engine.stages.transport import FileTransport
from engine.stages.windows import Window, Windows
from engine.types import HandoffRef, NodeId, TaskId

SIZES = {  # of real models' latents and embeddings
    "SD3 latent of 1024x1024": (1, 16, 128, 128),
    "T5 embeddings of 512 tokens": (1, 512, 4096),
    "HunyuanVideo latent of 129 frames": (1, 16, 33, 160, 90),
}


def windows(device: torch.device, scratch: Path) -> dict[str, Any]:
    """Return what reading takes either way, and whether the same was read, before and after a kill."""
    (scratch / "handoff").mkdir(parents=True)
    near = FileTransport(
        scratch / "handoff", device, windows=Windows(device, lambda lent: _open(lent, device))
    )
    by_file = FileTransport(scratch / "handoff", device)
    with _maker(device, scratch) as (maker, refs):
        rows = [_row(name, ref, near, by_file, device) for name, ref in refs.items()]
        opened = near._windows is not None and bool(near._windows._opened)  # noqa: SLF001 - proof that it was used
        maker.kill()
        maker.wait()
        survived = all(torch.equal(near.get(ref)["x"], _made(n, device)) for n, ref in refs.items())
    return {"sizes": rows, "by_window": opened, "survives_a_kill": survived}


def _row(
    name: str, ref: HandoffRef, near: FileTransport, by_file: FileTransport, device: torch.device
) -> dict[str, Any]:
    return {
        "what": name,
        "bytes": ref.size_bytes,
        "equal": torch.equal(near.get(ref)["x"], _made(name, device)),
        "window_s": median(seconds(lambda: near.get(ref), device)),
        "file_s": median(seconds(lambda: by_file.get(ref), device)),
    }


def _made(name: str, device: torch.device) -> Tensor:
    draw = torch.Generator().manual_seed(len(name))
    return torch.randn(SIZES[name], generator=draw).to(device, torch.bfloat16)


def _open(lent: bytes, device: torch.device) -> Tensor:
    if device.type == "cuda":
        return open_segments(lent)[0]
    return torch.from_file(lent.decode(), shared=True, size=WINDOW_BYTES, dtype=torch.uint8)


@contextmanager
def _maker(
    device: torch.device, scratch: Path
) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, HandoffRef]]]:
    """Run the other process until the block ends; yield it with what it has made."""
    command = [sys.executable, "-m", "benchmarks.gpu.windows", str(device), str(scratch)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as maker:
        try:
            assert maker.stdout is not None
            line = maker.stdout.readline()
            yield maker, msgspec.json.decode(line, type=dict[str, HandoffRef])
        finally:
            maker.kill()


def main(device_name: str, folder: str) -> None:
    """Make a hand-off of each size, say where they are, and live until standard input ends."""
    device, scratch = torch.device(device_name), Path(folder)
    memory = scratch / "memory"
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
        flat = torch.empty(WINDOW_BYTES, dtype=torch.uint8, device=device)
        own = Window(scratch / "windows" / "maker", flat, lambda flat: lend_segments([flat]))
    else:
        flat = torch.from_file(str(memory), shared=True, size=WINDOW_BYTES, dtype=torch.uint8)
        own = Window(scratch / "windows" / "maker", flat, lambda _flat: str(memory).encode())
    windows_ = Windows(device, lambda lent: _open(lent, device), own)
    transport = FileTransport(scratch / "handoff", device, windows=windows_)
    refs = {
        name: transport.put(NodeId("n"), TaskId(name), {"x": _made(name, device)}, near=True)
        for name in SIZES
    }
    print(json.dumps({name: msgspec.to_builtins(ref) for name, ref in refs.items()}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
