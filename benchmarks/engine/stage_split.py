"""What splitting a request over three processes costs: engine against one diffusers call.

Both sides run on one thread per process, on this machine, in this run, in turns. Prints a table
and writes JSON with every sample. Run as `make bench-engine`, or with `ARGS="--help"`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog
import torch
from diffusers import DiffusionPipeline

from engine import (
    EngineCore,
    GenerationRequest,
    MediaFormat,
    Modality,
    PipelineSpec,
    RequestId,
    SystemClock,
    open_pipeline,
)
from engine.executors.local import LocalExecutor
from engine.stages.media import write_image, write_video
from engine.stages.random_model import MAKERS, write_model
from observability.tracing import StageSpans, build_provider
from schedulers.cost import CostModel
from schedulers.dispatch.knobs import WORKERS
from schedulers.dispatch.trident import TridentDispatcher
from schedulers.static import StaticPlanner

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "a large red circle on a blue background"
PACKAGES = ("torch", "diffusers", "transformers", "pyzmq", "msgspec", "safetensors")


def engine_for(specs: list[PipelineSpec]) -> EngineCore:
    """Return an engine of three one-thread processes."""
    return EngineCore(
        specs,
        executor=LocalExecutor(specs, devices=3, threads=1),
        dispatcher=TridentDispatcher(CostModel(specs), WORKERS),
        planner=StaticPlanner(specs),
        clock=SystemClock(),
        spans=StageSpans(build_provider()),
    )


def request_for(spec: PipelineSpec, number: int) -> GenerationRequest:
    """Return the request that both sides run, with the model's own defaults."""
    return GenerationRequest(
        id=RequestId(f"bench-{spec.id}-{number}"),
        model=spec.id,
        prompt=PROMPT,
        shape=spec.default_shape,
        steps=spec.default_steps,
        guidance_scale=spec.default_guidance,
        seed=number,
        arrival_s=0.0,
        deadline_s=1.0,
        media=MediaFormat.MP4 if spec.modality is Modality.VIDEO else MediaFormat.PNG,
        fps=spec.default_fps,
    )


def monolithic(pipe: Any, request: GenerationRequest) -> bytes:
    """Run one plain diffusers call and write the file, as a server without stages would."""
    arguments = {
        "prompt": request.prompt,
        "width": request.shape.width_px,
        "height": request.shape.height_px,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "generator": torch.Generator().manual_seed(request.seed),
    }
    if request.media is MediaFormat.MP4:
        made = pipe(**arguments, num_frames=request.shape.frames, output_type="np")
        return write_video(made.frames[0], request.fps)
    return write_image(pipe(**arguments).images[0], request.media, request.compression)


async def measure(core: EngineCore, spec: PipelineSpec, rounds: int) -> dict[str, Any]:
    """Run both sides in turns; the first round warms up and is not counted."""
    pipe = DiffusionPipeline.from_pretrained(spec.folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    split_s, whole_s, stages_s = [], [], []
    for number in range(rounds + 1):
        request = request_for(spec, number)
        began = time.perf_counter()
        result = await core.generate(request)
        split_s.append(time.perf_counter() - began)
        stages_s.append(sum(timing.run_s for timing in result.timeline))
        began = time.perf_counter()
        content = monolithic(pipe, request)
        whole_s.append(time.perf_counter() - began)
        if content != result.artifacts[0].content:
            raise SystemExit(f"{spec.id}: the two sides drew different pictures; no figure counts.")
    return summary(spec, split_s[1:], whole_s[1:], stages_s[1:])


def summary(
    spec: PipelineSpec, split_s: list[float], whole_s: list[float], stages_s: list[float]
) -> dict[str, Any]:
    """Return medians, their ratio and the samples of one model."""
    split, whole = statistics.median(split_s), statistics.median(whole_s)
    return {
        "model": spec.id,
        "family": spec.family,
        "size": str(spec.default_shape),
        "steps": spec.default_steps,
        "median_three_processes_s": split,
        "median_monolithic_s": whole,
        "ratio": split / whole,
        "median_outside_stages_s": statistics.median(
            a - b for a, b in zip(split_s, stages_s, strict=True)
        ),
        "bit_equal": True,
        "samples_three_processes_s": split_s,
        "samples_monolithic_s": whole_s,
    }


async def run(folders: list[Path], rounds: int) -> list[dict[str, Any]]:
    """Measure every model on one engine."""
    specs = [open_pipeline(folder) for folder in folders]
    core = engine_for(specs)
    await core.start()
    while core.readiness():  # noqa: ASYNC110 - start-up is not measured
        await asyncio.sleep(0.1)
    try:
        return [await measure(core, spec, rounds) for spec in specs]
    finally:
        await core.close()


def environment() -> dict[str, Any]:
    """Return what a reader needs to compare figures."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/stage_split.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / f"random-{family}" for family in sorted(MAKERS)]
        for folder in folders:
            write_model(folder, folder.name.removeprefix("random-"), seed=0)
        folders = [ROOT / "models/shapes", ROOT / "models/motion", *folders]
        rows = asyncio.run(run(folders, args.rounds))
    for row in rows:
        print(
            f"{row['model']:>12} {row['size']:>8} {row['steps']:>3} steps: "
            f"three processes {row['median_three_processes_s'] * 1e3:7.1f} ms, "
            f"monolithic {row['median_monolithic_s'] * 1e3:7.1f} ms, ratio {row['ratio']:.2f}"
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    report = {"benchmark": "stage_split", **environment(), "rounds": args.rounds, "rows": rows}
    args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
