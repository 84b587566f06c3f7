"""What splitting a request over three processes costs: engine against one diffusers call.

Both sides run on one thread per process, on this machine, in this run, in turns: who goes first
changes every round. `ratio` is the median over rounds of engine by library, both of the same
round, with the interval of order statistics that holds the true median with 95 %; a goal is kept or
missed where the whole interval is. Processor seconds are counted beside wall seconds, because they mean something
on a busy machine too. Prints a table, holds it against the goals, and writes JSON with every
sample. Run as `make bench-engine`, or with `ARGS="--help"`. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import structlog
import torch
from diffusers import DiffusionPipeline

from benchmarks.environment import environment
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
from engine.types import StageKind, StageTiming
from observability.tracing import StageSpans, build_provider
from schedulers.cost import CostModel
from schedulers.dispatch.knobs import WORKERS
from schedulers.dispatch.trident import TridentDispatcher
from schedulers.static import StaticPlanner

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "a large red circle on a blue background"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
LONG_STEP_S = 0.1
MOST_RATIO, MOST_RATIO_OF_LONG_STEPS = 1.03, 1.005  # of the smallest model; of steps >= 100 ms
PACKAGES = ("torch", "diffusers", "transformers", "pyzmq", "msgspec", "safetensors")


def engine_for(specs: list[PipelineSpec], executor: LocalExecutor) -> EngineCore:
    """Return an engine of three one-thread processes."""
    return EngineCore(
        specs,
        executor=executor,
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


@dataclass
class Samples:
    """Seconds of one side of the comparison, a sample per round."""

    wall_s: list[float] = field(default_factory=list)
    processor_s: list[float] = field(default_factory=list)


@contextmanager
def timed(samples: Samples, pids: Sequence[int]) -> Iterator[None]:
    """Add a sample: what passes, and what this process and `pids` use of a core meanwhile."""
    spent_s, began = processor_s(pids), time.perf_counter()
    yield
    samples.wall_s.append(time.perf_counter() - began)
    samples.processor_s.append(processor_s(pids) - spent_s)


def processor_s(pids: Sequence[int]) -> float:
    """Return the processor seconds that this process and others have used so far."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    ticks = sum(int(user) + int(system) for user, system in (f[11:13] for f in fields))
    return time.process_time() + ticks / TICKS_PER_S


async def measure(
    core: EngineCore, pids: Sequence[int], spec: PipelineSpec, rounds: int
) -> dict[str, Any]:
    """Run both sides in turns; the first round warms up and is not counted."""
    pipe = DiffusionPipeline.from_pretrained(spec.folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    split, whole, timelines = Samples(), Samples(), list[tuple[StageTiming, ...]]()
    for number in range(rounds + 1):
        request, contents = request_for(spec, number), set[bytes]()
        for is_split in (number % 2 == 0, number % 2 == 1):
            if is_split:
                with timed(split, pids):
                    result = await core.generate(request)
                timelines.append(result.timeline)
                contents.add(result.artifacts[0].content)
            else:
                with timed(whole, pids):
                    contents.add(monolithic(pipe, request))
        if len(contents) > 1:
            raise SystemExit(f"{spec.id}: the two sides drew different pictures; no figure counts.")
    return summary(spec, split, whole, timelines)


def summary(
    spec: PipelineSpec,
    split: Samples,
    whole: Samples,
    timelines: Sequence[tuple[StageTiming, ...]],
) -> dict[str, Any]:
    """Return medians, their ratios and the samples of one model, without the warm-up."""
    stages_s = [sum(timing.run_s for timing in timeline) for timeline in timelines[1:]]
    diffuse_s = median(t.run_s for line in timelines[1:] for t in line
                       if t.stage is StageKind.DIFFUSE)  # fmt: skip
    outside_s = [a - b for a, b in zip(split.wall_s[1:], stages_s, strict=True)]
    return {
        "model": spec.id,
        "family": spec.family,
        "size": str(spec.default_shape),
        "steps": spec.default_steps,
        "step_s": diffuse_s / spec.default_steps,
        "median_three_processes_s": median(split.wall_s[1:]),
        "median_monolithic_s": median(whole.wall_s[1:]),
        **paired(split.wall_s[1:], whole.wall_s[1:]),
        "processor_ratio": median(split.processor_s[1:]) / median(whole.processor_s[1:]),
        "median_outside_stages_s": median(outside_s),
        "bit_equal": True,
        "samples_three_processes_s": split.wall_s[1:],
        "samples_monolithic_s": whole.wall_s[1:],
        "samples_three_processes_processor_s": split.processor_s[1:],
        "samples_monolithic_processor_s": whole.processor_s[1:],
    }


def paired(split_s: Sequence[float], whole_s: Sequence[float]) -> dict[str, Any]:
    """Return the median ratio of the rounds and the ranks around it that hold it with 95 %.

    The ranks are those of a binomial by its normal approximation: n / 2 -+ 0.98 sqrt(n).
    """
    ratios = sorted(a / b for a, b in zip(split_s, whole_s, strict=True))
    beside = max(0, math.floor(len(ratios) / 2 - 0.98 * math.sqrt(len(ratios))))
    return {"ratio": median(ratios), "ratio_95": (ratios[beside], ratios[-1 - beside])}


def verdict(row: dict[str, Any], goal: float) -> str:
    """Return how one row stands to its goal, as far as its rounds can tell."""
    low, high = row["ratio_95"]
    standing = (
        "kept" if high < goal else "MISSED" if low >= goal else "within the noise of this run"
    )
    return (
        f"{row['model']}, {row['step_s'] * 1e3:.0f} ms a step: ratio {row['ratio']:.4f} "
        f"({low:.4f} to {high:.4f}), goal below {goal:g}: {standing}"
    )


def verdicts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return how the rows stand to the goals: of the smallest model, and of long steps."""
    goals = [(rows[0], MOST_RATIO)]
    goals += [(row, MOST_RATIO_OF_LONG_STEPS) for row in rows if row["step_s"] >= LONG_STEP_S]
    return [verdict(row, most) for row, most in goals]


async def run(folders: list[Path], rounds: int) -> list[dict[str, Any]]:
    """Measure every model on one engine."""
    specs = [open_pipeline(folder) for folder in folders]
    executor = LocalExecutor(specs, devices=3, threads=1)
    core = engine_for(specs, executor)
    await core.start()
    while core.readiness():  # noqa: ASYNC110 - start-up is not measured
        await asyncio.sleep(0.1)
    try:
        pids = tuple(executor.process_ids().values())
        return [await measure(core, pids, spec, rounds) for spec in specs]
    finally:
        await core.close()


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
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
            f"monolithic {row['median_monolithic_s'] * 1e3:7.1f} ms, ratio {row['ratio']:.3f} of the same rounds "
            f"(of processor seconds {row['processor_ratio']:.3f})"
        )
    print("\n".join(verdicts(rows)))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "benchmark": "stage_split",
        **environment(PACKAGES),
        "rounds": args.rounds,
        "goals": verdicts(rows),
        "rows": rows,
    }
    args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
