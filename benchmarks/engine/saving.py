"""What a long diffuse pays for saving where it stands: `make bench-saving`.

A save has two parts. `stall`: the denoise loop stands still while the worker copies the trajectory
(latent, the sampler's memory, generator) and writes it to shared memory. `keep`: a thread of the
controller copies that file to the data folder and waits until it is on the disk, beside the work.
Latents have the sizes of real models, the sampler is a multistep solver that remembers two outputs.
`stall_share` is of the least time between two saves (TRIDENT_SAVE_EVERY_S).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler

from benchmarks.environment import environment
from engine.handoff import HandoffStore, PrivateFolder
from engine.keeping import copy_whole
from engine.stages.saving import save
from engine.stages.transport import FileTransport
from engine.types import NodeId, TaskId

ROOT = Path(__file__).resolve().parents[2]
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a memory file system, not a temp folder
PACKAGES = ("torch", "diffusers", "safetensors")
EVERY_S = 5.0
STEPS = 10
# Batch, channels, frames if any, rows, columns; what a request of one output has.
LATENTS: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
    "shapes 64x64": ((1, 4, 16, 16), torch.float32),
    "SD3 1024x1024": ((1, 16, 128, 128), torch.bfloat16),
    "Flux.1 2048x2048": ((1, 16, 256, 256), torch.bfloat16),
    "CogVideoX1.5 768x1360x81": ((1, 21, 16, 96, 170), torch.bfloat16),
    "HunyuanVideo 720x1280x129": ((1, 16, 33, 90, 160), torch.bfloat16),
}


def under_way(shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    """Return a trajectory that has taken enough steps for its sampler to remember all it can."""
    scheduler = DPMSolverMultistepScheduler()
    scheduler.set_timesteps(STEPS)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(shape, generator=generator).to(dtype)
    for timestep in scheduler.timesteps[:3]:
        latents = scheduler.step(torch.randn_like(latents), timestep, latents).prev_sample
    return SimpleNamespace(scheduler=scheduler, generator=generator, latents=latents, step=3)


def milliseconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes."""
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def measure(name: str, rounds: int, store: HandoffStore, disk: Path) -> dict[str, Any]:
    """Save and keep in turns; the first round warms up and is not counted."""
    trajectory = under_way(*LATENTS[name])
    transport = FileTransport(store.folder, torch.device("cpu"))
    stalls, keeps, size_bytes = list[float](), list[float](), 0
    for number in range(rounds + 1):
        task = TaskId(f"{name}/{number}")
        stalls.append(
            milliseconds(lambda t=task: transport.put_snapshot(NodeId("n"), t, save(trajectory)))
        )
        [source] = store.folder.glob("*.safetensors")
        size_bytes = source.stat().st_size
        target = disk / "kept.latent"
        keeps.append(milliseconds(lambda s=source, t=target: copy_whole(s, t)))
        source.unlink()
        target.unlink()
    return {
        "latent": name,
        "file_bytes": size_bytes,
        "median_stall_ms": statistics.median(stalls[1:]),
        "median_keep_ms": statistics.median(keeps[1:]),
        "stall_share": statistics.median(stalls[1:]) / (1000 * EVERY_S),
        "stalls_ms": stalls[1:],
        "keeps_ms": keeps[1:],
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--data-dir", type=Path, help="a folder on the disk to be measured [temp]")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/saving.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    memory = PrivateFolder()
    store = HandoffStore(memory.path / "handoff")
    with tempfile.TemporaryDirectory(dir=args.data_dir) as folder:
        disk = Path(folder)
        rows = [measure(name, args.rounds, store, disk) for name in LATENTS]
        report = {
            "benchmark": "saving",
            **environment(PACKAGES),
            "data_folder_is_memory": disk.stat().st_dev == SHARED_MEMORY.stat().st_dev,
            "rounds": args.rounds,
            "rows": rows,
        }
    memory.close()
    for row in rows:
        print(
            f"{row['latent']:<26} {row['file_bytes'] / 1e6:6.1f} MB  stall "
            f"{row['median_stall_ms']:6.1f} ms ({row['stall_share']:.3%} of {EVERY_S:.0f} s)  keep "
            f"{row['median_keep_ms']:7.1f} ms beside the work"
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
