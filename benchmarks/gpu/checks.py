"""What is measured on a GPU: stages of large models, copies to the device, batches, and the engine.

Each check returns a dictionary for the report, and works on a CPU with tiny models as well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.sizes import Architecture, Size, materialise, weight_bytes
from engine import PipelineSpec, open_pipeline
from engine.executors.local import LocalExecutor
from engine.fingerprint import fingerprint
from engine.types import Shape
from gateway.bench import EngineTarget, Replay, until_ready
from gateway.embedded import EmbeddedEngine
from gateway.notebook import Notebook
from gateway.profiler import Profiler
from gateway.runner import Telemetry, reserve_bytes
from gateway.settings import Settings
from observability.meters import Meters
from observability.monitor import StageMonitor
from observability.tracing import build_provider
from schedulers.cost import CostModel
from schedulers.profile import load_profile
from schedulers.profiles.build import render
from schedulers.profiles.measured import build_profile
from schedulers.profiles.schema import Measurement
from schedulers.sim.audit import audit
from schedulers.sim.events import EvictEvent, LoadEvent, RejectEvent, RunEvent, SimEvent
from schedulers.sim.traces import TraceRow

REPETITIONS = 3
CHUNK_BYTES = 256 << 20
Figures = dict[str, Any]


def _sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(act: Callable[[], object], device: torch.device) -> list[float]:
    """Return the seconds of some executions, after one that warms up."""
    taken = []
    for _ in range(1 + REPETITIONS):
        _sync(device)
        began = time.perf_counter()
        act()
        _sync(device)
        taken.append(time.perf_counter() - began)
    return taken[1:]


def _peak(device: torch.device, act: Callable[[], object]) -> tuple[list[float], int]:
    base = 0
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        base = torch.cuda.memory_allocated(device)
    taken = seconds(act, device)
    peak = torch.cuda.max_memory_allocated(device) - base if device.type == "cuda" else 0
    return taken, peak


@torch.inference_mode()
def stages(model: Architecture, device: torch.device, batches: tuple[int, ...]) -> Figures:
    """Profile encode, one denoise step and decode of each size; one stage on the device at a time."""
    found: Figures = {"model": model.name}
    found["encode"] = _encodes(model, device, batches)
    denoiser = materialise(model.denoiser, device)
    found["diffuse"] = {"weight_bytes": weight_bytes(denoiser), "sizes": [], "batches": []}
    for size in model.sizes:
        found["diffuse"]["sizes"].append(_step(model, denoiser, size, 1, device))
    for batch in batches[1:]:
        found["diffuse"]["batches"].append(_step(model, denoiser, model.sizes[0], batch, device))
    found["copies"] = copies(denoiser, device)
    del denoiser
    decoder = materialise(model.decoder, device)
    found["decode"] = {"weight_bytes": weight_bytes(decoder), "sizes": []}
    for size in model.sizes:
        latents = model.latents(size, device)
        try:
            taken, peak = _peak(device, lambda latents=latents: decoder.decode(latents))
        except torch.OutOfMemoryError as error:
            found["decode"]["sizes"].append({"size": str(size), "failed": str(error)[:200]})
        else:
            found["decode"]["sizes"].append(_row(size=str(size), taken=taken, peak=peak))
    return found


def _encodes(model: Architecture, device: torch.device, batches: tuple[int, ...]) -> Figures:
    encoder = materialise(model.encoder, device)
    found: Figures = {"weight_bytes": weight_bytes(encoder), "batches": []}
    for batch in batches:
        ids = torch.randint(0, model.vocabulary, (batch, model.text_tokens), device=device)
        taken, peak = _peak(device, lambda ids=ids: encoder(input_ids=ids))
        found["batches"].append(_row(batch=batch, taken=taken, peak=peak))
    return found


def _step(
    model: Architecture, denoiser: nn.Module, size: Size, batch: int, device: torch.device
) -> Figures:
    inputs = model.step_inputs(size, batch, device)
    try:
        taken, peak = _peak(device, lambda: denoiser(**inputs))
    except torch.OutOfMemoryError as error:
        return {"size": str(size), "batch": batch, "failed": str(error)[:200]}
    return _row(size=str(size), batch=batch, taken=taken, peak=peak)


def _row(*, taken: list[float], peak: int, **about: object) -> Figures:
    return {**about, "median_s": median(taken), "samples_s": taken, "peak_activation_bytes": peak}


def copies(module: nn.Module, device: torch.device) -> Figures:
    """Bring a stage's weights from pinned host memory to the device, against one plain copy.

    The limit is the best of large copies of one pinned buffer; the stage goes in flat buffers.
    """
    pins = device.type == "cuda"
    size = min(CHUNK_BYTES, max(1 << 20, weight_bytes(module)))
    one = torch.empty(size, dtype=torch.uint8, pin_memory=pins)
    target = torch.empty(size, dtype=torch.uint8, device=device)
    limit = size / min(seconds(lambda: target.copy_(one, non_blocking=True), device))
    count = -(-weight_bytes(module) // size)
    host = [torch.empty(size, dtype=torch.uint8, pin_memory=pins) for _ in range(min(count, 8))]
    there = torch.empty(size, dtype=torch.uint8, device=device)

    def load() -> None:
        for number in range(count):  # buffers are used again: this is about the link
            there.copy_(host[number % len(host)], non_blocking=True)

    taken = seconds(load, device)
    rate = count * size / median(taken)
    return {
        "limit_bytes_per_s": limit,
        "stage_bytes_per_s": rate,
        "of_limit": rate / limit,
        "stage_load_s": median(taken),
    }


def _telemetry() -> Telemetry:
    monitor = StageMonitor()
    return Telemetry(build_provider(processors=[monitor]), monitor, Meters())


async def profiled(folder: Path, scratch: Path, kind: str, minutes: float) -> tuple[Path, Figures]:
    """Profile a served model through a worker: loads, pause and resume, sizes; write the profile."""
    spec = open_pipeline(folder, dtype_bytes=2 if kind == "cuda" else 4)
    executor = LocalExecutor([spec], devices=1, device_kind="cuda" if kind == "cuda" else "cpu")
    notebook = Notebook(scratch / "profile.part", {})
    profiler = Profiler(
        executor,
        notebook,
        degrees=(1,),
        batches=(1,),
        repetitions=REPETITIONS,
        minutes=minutes,
        say=lambda _what, _share: None,
    )
    try:
        await profiler.measure([spec], [])
    finally:
        await executor.close()
    profile = build_profile(
        notebook.figures,
        [spec],
        device=kind,
        devices=1,
        reserve_bytes=reserve_bytes(kind),
        fingerprints={spec.id: fingerprint(folder)},
        measurement=Measurement(
            machine=kind,
            date="see the report",
            repetitions=REPETITIONS,
            versions={},
            threads=1,
            load_average=0.0,
        ),
    )
    path = scratch / "profile.json"
    path.write_text(render(profile), encoding="utf-8")
    model = profile.models[spec.id]
    return path, {
        "change_s": profile.node.change_s,
        "load_host_s": {kind: stage.load_host_s for kind, stage in model.stages.items()},
        "left_out": profiler.left_out,
    }


async def served(
    folder: Path, profile: Path, scratch: Path, kind: str, memory_bytes: int | None
) -> Figures:
    """Serve requests one by one: predicted against measured; under a cap, what was swapped.

    With `memory_bytes` no two stages fit beside each other, so every stage is evicted and loaded.
    """
    events: list[SimEvent] = []
    settings = Settings(
        models=(folder,),
        data_dir=scratch,
        device="cuda" if kind == "cuda" else "cpu",
        devices=1,
        device_memory_bytes=memory_bytes,
        profile=profile,
        embedding_cache_bytes=0,
    )
    engine = EmbeddedEngine(settings, _telemetry(), events.append, waits=True)
    spec = next(iter(engine.specs.values()))
    cost = CostModel([spec], load_profile(str(profile)), learn=False)
    await engine.start()
    try:
        async with asyncio.timeout(300):
            while not engine.is_up:  # noqa: ASYNC110 - start-up is not measured
                await asyncio.sleep(0.1)
        if memory_bytes is None:
            await until_ready(engine)
        predicted, samples = await _replayed(engine, spec, cost)
    finally:
        await engine.close()
    measured = median(samples)
    return {
        "requests": len(samples),
        "rejected": sum(isinstance(event, RejectEvent) for event in events),
        "loads": sum(isinstance(event, LoadEvent) for event in events),
        "evictions": sum(isinstance(event, EvictEvent) for event in events),
        "runs": sum(isinstance(event, RunEvent) for event in events),
        "audit": audit(events),
        "predicted_s": predicted,
        "measured_s": measured,
        "predicted_over_measured": predicted / measured,
        "samples_s": samples,
    }


async def _replayed(
    engine: EmbeddedEngine, spec: PipelineSpec, cost: CostModel
) -> tuple[float, list[float]]:
    """Return the predicted seconds of a usual request and the measured ones, after a first."""
    trace = [_trace_row(spec.id, spec.default_shape, spec.default_steps)]

    def replay(name: str) -> Replay:
        return Replay(
            EngineTarget(engine), trace, slo_scale=10.0, reference_s=cost.reference_s, name=name
        )

    await replay("first").warm_up()
    engine.begin_history()
    samples = []
    for number in range(REPETITIONS):
        began = time.perf_counter()
        await replay(f"counted-{number}").run()
        samples.append(time.perf_counter() - began)
    return cost.reference_s(replay("none").example()), samples


def _trace_row(model: Any, shape: Shape, steps: int) -> TraceRow:
    return TraceRow(
        arrival_s=0.0,
        height=shape.height_px,
        width=shape.width_px,
        frames=shape.frames,
        steps=steps,
        model=model,
    )


def described(model: Architecture) -> Figures:
    """Return what a reader needs to know of a model."""
    return {"name": model.name, "sizes": [asdict(size) for size in model.sizes]}
