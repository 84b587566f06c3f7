"""Real worker processes: bit-equality with diffusers, kill -9, cancellation, torn weights."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import av
import numpy as np
import pytest
import pytest_asyncio
import torch
import zmq.asyncio
from diffusers import DiffusionPipeline
from PIL import Image

from engine import (
    EngineCore,
    GenerationRequest,
    ModelId,
    PipelineSpec,
    RequestId,
    Shape,
    StageFailedError,
    SystemClock,
    open_pipeline,
)
from engine.executors import slot
from engine.executors.local import LocalExecutor
from engine.stages.media import write_video
from engine.types import DeviceId, MediaFormat, NodeId, StageKind
from observability.tracing import StageSpans, build_provider
from schedulers.cost import CostModel
from schedulers.dispatch.knobs import WORKERS
from schedulers.dispatch.trident import TridentDispatcher
from schedulers.static import StaticPlanner

STILLS = ("flux", "sd3", "sd")
FAMILIES = (*STILLS, "animatediff")
pytestmark = pytest.mark.asyncio(loop_scope="module")


class RunningEngine:
    """An engine on real processes, with the handles that tests need."""

    def __init__(self, specs: list[PipelineSpec], devices: int) -> None:
        self.executor = LocalExecutor(specs, devices=devices, threads=1)
        self.core = EngineCore(
            specs,
            executor=self.executor,
            dispatcher=TridentDispatcher(CostModel(specs), WORKERS),
            planner=StaticPlanner(specs),
            clock=SystemClock(),
            spans=StageSpans(build_provider()),
        )
        self.steps: asyncio.Event = asyncio.Event()
        report_step = self.core.listener.task_progressed

        def progressed(task: str, step: int, steps: int) -> None:
            report_step(task, step, steps)
            self.steps.set()

        self.core.listener.task_progressed = progressed  # type: ignore[method-assign]

    async def ready(self) -> None:
        async with asyncio.timeout(240):
            while self.core.readiness():
                await asyncio.sleep(0.05)

    async def idle(self) -> None:
        """Wait until no team works and audit what is left: nothing."""
        async with asyncio.timeout(10):
            while self.core.cluster.teams.busy:
                await asyncio.sleep(0.01)
        self.core.check_integrity()
        assert self.executor._handoffs.used_bytes == 0
        assert list(self.executor._handoffs.folder.iterdir()) == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model_folder: Callable[[str], Path]) -> AsyncIterator[RunningEngine]:
    """Three processes, one per stage, that serve all families."""
    running = RunningEngine([open_pipeline(model_folder(family)) for family in FAMILIES], devices=3)
    await running.core.start()
    try:
        await running.ready()
        yield running
        await running.idle()
    finally:
        await running.core.close()


def request(model: str, **changes: object) -> GenerationRequest:
    values = {
        "id": RequestId(f"test-{model}"),
        "model": ModelId(model),
        "prompt": "a red circle",
        "shape": Shape(64, 96),
        "steps": 4,
        "guidance_scale": 3.5,
        "seed": 7,
        "arrival_s": 0.0,
        "deadline_s": 1.0,
    }
    return GenerationRequest(**(values | changes))


def call_diffusers(
    folder: Path, seed: int, parts: dict[str, None] | None = None, **arguments: object
) -> Any:
    """Run the whole pipeline of a folder on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True, **(parts or {}))
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    size = {"width": 64, "height": 96, "num_inference_steps": 4, "generator": generator}
    result = pipe(prompt="a red circle", **size, **arguments)
    torch.set_num_threads(threads)
    return result


def monolithic(folder: Path, seed: int, **arguments: object) -> bytes:
    """Return the PNG of one plain diffusers call on one thread."""
    image = call_diffusers(folder, seed, **arguments).images[0]
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("family", STILLS)
async def test_three_processes_draw_bit_for_bit_what_one_diffusers_call_draws(
    engine: RunningEngine, model_folder: Callable[[str], Path], family: str
) -> None:
    negative = None if family == "flux" else "a blue square"
    result = await engine.core.generate(request(family, n=2, negative_prompt=negative))
    devices = {timing.stage: timing.device for timing in result.timeline}
    assert len(set(devices.values())) == 3
    extras = {} if family == "flux" else {"negative_prompt": negative}
    for index, artifact in enumerate(result.artifacts):
        expected = monolithic(model_folder(family), seed=7 + index, guidance_scale=3.5, **extras)
        assert artifact.content == expected, index


@pytest.mark.parametrize("guidance", [1.0, 3.5])
async def test_a_video_is_bit_equal_too_and_has_the_exact_size_and_rate(
    engine: RunningEngine, model_folder: Callable[[str], Path], guidance: float
) -> None:
    shape = Shape(64, 96, frames=5)
    wanted = request(
        "animatediff", shape=shape, guidance_scale=guidance, media=MediaFormat.MP4, fps=6
    )
    [artifact] = (await engine.core.generate(wanted)).artifacts
    arguments = {"num_frames": 5, "guidance_scale": guidance, "output_type": "np"}
    frames = call_diffusers(model_folder("animatediff"), seed=7, **arguments).frames[0]
    assert artifact.content == write_video(frames, fps=6)
    with av.open(io.BytesIO(artifact.content)) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 6)
        decoded = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
    assert np.array(decoded).shape == (5, 96, 64, 3)
    assert np.abs(np.array(decoded) / 255 - frames).mean() < 0.05
    assert artifact.content.index(b"moov") < artifact.content.index(b"mdat")


@pytest.mark.parametrize("family", ["sd3", "sd"])
async def test_without_guidance_the_split_is_bit_equal_too(
    engine: RunningEngine, model_folder: Callable[[str], Path], family: str
) -> None:
    result = await engine.core.generate(request(family, guidance_scale=1.0))
    expected = monolithic(model_folder(family), seed=7, guidance_scale=1.0)
    assert result.artifacts[0].content == expected


async def test_each_process_holds_only_the_weights_of_its_stage(engine: RunningEngine) -> None:
    memories = engine.core.cluster.memories.values()
    kinds = [{stage.kind for stage in memory.weights} for memory in memories]
    assert sorted(kinds, key=str) == [{StageKind.DECODE}, {StageKind.DIFFUSE}, {StageKind.ENCODE}]
    assert all(memory.used_bytes > 0 for memory in memories)


async def test_a_worker_killed_in_mid_request_is_restarted_and_the_stage_retried(
    engine: RunningEngine,
) -> None:
    undisturbed = await engine.core.generate(request("sd", steps=60))
    engine.steps.clear()
    work = asyncio.create_task(engine.core.generate(request("sd", steps=60)))
    await engine.steps.wait()
    old = engine.executor.process_ids()[DeviceId("cpu:1")]
    os.kill(old, signal.SIGKILL)
    result = await asyncio.wait_for(work, 60)
    await engine.ready()
    assert engine.executor.process_ids()[DeviceId("cpu:1")] != old
    assert result.artifacts[0].content == undisturbed.artifacts[0].content
    assert [t.attempt for t in result.timeline] == [1, 2, 1]


async def test_a_worker_that_hangs_is_killed_and_the_stage_retried(
    engine: RunningEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot, "SILENCE_S", 6.0)  # two beats: or all are taken for hanging
    engine.steps.clear()
    work = asyncio.create_task(engine.core.generate(request("sd", steps=60)))
    await engine.steps.wait()
    os.kill(engine.executor.process_ids()[DeviceId("cpu:1")], signal.SIGSTOP)
    result = await asyncio.wait_for(work, 60)
    assert [t.attempt for t in result.timeline] == [1, 2, 1]
    await engine.ready()


async def test_a_worker_that_speaks_nonsense_is_replaced(engine: RunningEngine) -> None:
    place = engine.executor._slots[DeviceId("cpu:2")]
    old = place.process_id
    place._incarnation += 1  # a stranger takes the name of the worker's next process
    with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.IDENTITY, place.identity.encode())
        stranger.connect(engine.executor._endpoint)
        await stranger.send(b"\xc1 no msgpack")
        async with asyncio.timeout(30):
            while place.process_id in {old, None}:
                await asyncio.sleep(0.05)
    await engine.ready()
    done = await engine.core.generate(request("sd", id=RequestId("after-nonsense")))
    assert len(done.artifacts) == 1


async def test_a_worker_whose_loader_breaks_is_replaced(engine: RunningEngine) -> None:
    device = DeviceId("cpu:2")
    old = engine.executor.process_ids()[device]
    name = f"{engine.executor._slots[device].identity}{slot.LOAD_SUFFIX}"
    await engine.executor._lines._socket.send_multipart([name.encode(), b"\xc1 no msgpack"])
    async with asyncio.timeout(30):
        while engine.executor.process_ids().get(device, old) == old:
            await asyncio.sleep(0.05)
    await engine.ready()
    done = await engine.core.generate(request("sd", id=RequestId("after-a-broken-loader")))
    assert len(done.artifacts) == 1


async def test_cancelling_stops_the_denoise_loop_within_a_step(engine: RunningEngine) -> None:
    engine.steps.clear()
    work = asyncio.create_task(engine.core.generate(request("sd", steps=200)))
    await engine.steps.wait()
    [run] = engine.core._requests.values()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    await engine.idle()
    assert run._steps._done[NodeId("diffuse-0")] < 100
    done = await engine.core.generate(request("sd", id=RequestId("next")))
    assert len(done.artifacts) == 1


@pytest.mark.parametrize("media", [MediaFormat.PNG, MediaFormat.JPEG, MediaFormat.WEBP])
async def test_every_format_is_written_at_the_exact_size(
    engine: RunningEngine, media: MediaFormat
) -> None:
    result = await engine.core.generate(
        request("sd3", shape=Shape(96, 64), media=media, compression=80)
    )
    image = Image.open(io.BytesIO(result.artifacts[0].content))
    assert (image.size, image.format) == ((96, 64), media.value.upper())


async def test_an_sd3_folder_without_t5_is_served_bit_equal(
    engine: RunningEngine, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    del engine  # only so that the two engines do not run at once
    folder = tmp_path / "no-t5"
    copytree(model_folder("sd3"), folder)
    for part in ("text_encoder_3", "tokenizer_3"):
        rmtree(folder / part)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    running = RunningEngine([open_pipeline(folder)], devices=1)
    await running.core.start()
    try:
        await running.ready()
        [artifact] = (await running.core.generate(request("no-t5"))).artifacts
    finally:
        await running.core.close()
    absent = {"text_encoder_3": None, "tokenizer_3": None}
    whole = monolithic(folder, seed=7, guidance_scale=3.5, parts=absent)
    assert artifact.content == whole


async def test_torn_weights_fail_the_request_and_leave_other_models_alone(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    torn = tmp_path / "torn"
    copytree(model_folder("sd"), torn)
    engine = RunningEngine([open_pipeline(torn), open_pipeline(model_folder("sd3"))], devices=1)
    weights = torn / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    await engine.core.start()
    try:
        with pytest.raises(StageFailedError, match="Cannot load torn/diffuse"):
            await engine.core.generate(request("torn"))
        fine = await engine.core.generate(request("sd3"))
        assert len(fine.artifacts) == 1
        assert any("torn/diffuse" in reason for reason in engine.core.readiness())
    finally:
        await engine.core.close()


async def test_closing_leaves_no_process_and_no_file(model_folder: Callable[[str], Path]) -> None:
    engine = RunningEngine([open_pipeline(model_folder("sd"))], devices=2)
    await engine.core.start()
    await engine.ready()
    pids, folder = engine.executor.process_ids(), engine.executor._handoffs.folder
    await engine.core.close()
    assert not folder.exists()
    for pid in pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
