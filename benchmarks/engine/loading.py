"""What making a stage resident takes: from its files, from the host copy, and as diffusers loads it.

Every sample is a load of one stage onto a CPU device, on one thread, in this process: `today` is
`from_pretrained` (which maps float32 files and reads them only when they are used), `read` the same
with every page of the weights touched once, `cold` is the first load of a node (files into the host copy, then to the device),
`warm` the first load of another worker (host copy to the device, modules built), `again` one that
was evicted before (the copy alone). Before `today`, `read` and `cold` the files are dropped from the page
cache. Seconds are given of the clock and of this process's CPU time, since the machine is shared. Run as `make bench-loading`, or with `ARGS="--help"`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
import torch
from diffusers import SD3Transformer2DModel

from benchmarks.environment import environment
from engine import PipelineSpec, open_pipeline
from engine.handoff import PrivateFolder
from engine.host_store import booked_bytes, delete_copy
from engine.messages import HostCopy, LoadStage
from engine.stages.random_model import write_model
from engine.stages.registry import load_parts, load_stage
from engine.stages.shelf import StageShelf
from engine.types import StageKind

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "diffusers", "transformers", "safetensors")
CPU = torch.device("cpu")
LOADS = ("today", "read", "cold", "warm", "again")


def write_larger(folder: Path, layers: int) -> None:
    """Write a random SD3 folder whose denoiser has `layers` blocks of width 1024."""
    write_model(folder, "sd3", seed=0)
    config = SD3Transformer2DModel.load_config(folder / "transformer")
    wide = dict(config) | {
        "num_layers": layers,
        "attention_head_dim": 64,
        "num_attention_heads": 16,
        "caption_projection_dim": 1024,
    }
    SD3Transformer2DModel.from_config(wide).save_pretrained(folder / "transformer")


def drop_from_page_cache(folder: Path) -> None:
    """Let the next reader of the weights go to the disk."""
    for path in folder.rglob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return the clock's and the CPU's seconds; what `work` made is freed after they stopped."""
    gc.collect()
    began, began_cpu = time.perf_counter(), time.process_time()
    made = work()
    taken = time.perf_counter() - began, time.process_time() - began_cpu
    del made
    return taken


def load_and_read(folder: Path, family: str, kind: StageKind) -> object:
    """Load as diffusers does and touch every page of the weights."""
    parts = load_parts(folder, family, kind, torch.float32)
    for module in parts.modules.values():
        for parameter in module.parameters():
            parameter.detach().reshape(-1)[::1024].sum()
    return parts


def measure(spec: PipelineSpec, kind: StageKind, rounds: int, memory: Path) -> dict[str, Any]:
    """Take all times in turns; the first round warms up and is not counted."""
    folder, stage, path = Path(spec.folder), spec.stage(kind), memory / "copy"
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in LOADS}
    copy_bytes = 0
    for _ in range(rounds + 1):
        drop_from_page_cache(folder)
        samples["today"].append(seconds(lambda: load_stage(folder, spec.family, kind, CPU)))
        drop_from_page_cache(folder)
        samples["read"].append(seconds(lambda: load_and_read(folder, spec.family, kind)))
        drop_from_page_cache(folder)
        empty = HostCopy(
            str(path), is_filled=False, size_bytes=booked_bytes(spec.weight_bytes[kind])
        )
        fill = LoadStage(stage, spec.folder, spec.family, empty)
        first = StageShelf(CPU)
        samples["cold"].append(seconds(lambda f=first, o=fill: f.load(o)))
        copy_bytes = path.stat().st_size
        full = HostCopy(str(path), is_filled=True, size_bytes=copy_bytes)
        order, other = LoadStage(stage, spec.folder, spec.family, full), StageShelf(CPU)
        samples["warm"].append(seconds(lambda s=other, o=order: s.load(o)))
        other.unload(stage)
        samples["again"].append(seconds(lambda s=other, o=order: s.load(o)))
        delete_copy(path)
    counted = {name: values[1:] for name, values in samples.items()}
    return {
        "model": spec.id,
        "stage": kind.value,
        "weight_bytes": spec.weight_bytes[kind],
        "host_copy_bytes": copy_bytes,
        "median_s": _medians(counted, 0),
        "median_cpu_s": _medians(counted, 1),
        "samples_s_and_cpu_s": counted,
    }


def _medians(samples: dict[str, list[tuple[float, float]]], index: int) -> dict[str, float]:
    return {name: statistics.median(v[index] for v in values) for name, values in samples.items()}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=8, help="blocks of the larger random model")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/loading.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    memory, rows = PrivateFolder(), []
    with tempfile.TemporaryDirectory() as scratch:
        larger = Path(scratch) / "larger"
        write_larger(larger, args.layers)
        for folder in (ROOT / "models/shapes", ROOT / "models/motion", larger):
            spec = open_pipeline(folder)
            rows += [measure(spec, kind, args.rounds, memory.path) for kind in StageKind]
    memory.close()
    for row in rows:
        cpu = row["median_cpu_s"]
        times = "  ".join(f"{k} {v:6.3f} ({cpu[k]:.3f}) s" for k, v in row["median_s"].items())
        print(f"{row['model']:>8} {row['stage']:<8} {row['weight_bytes'] / 1e6:8.1f} MB  {times}")
    report = {"benchmark": "loading", **environment(PACKAGES), "rounds": args.rounds, "rows": rows}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
