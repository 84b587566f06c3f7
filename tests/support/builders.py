"""Small valid values for tests: specs, requests, devices."""

from __future__ import annotations

from typing import Any

from engine.cards import Limits
from engine.messages import StageReport
from engine.pipelines import PipelineSpec
from engine.types import (
    DeviceId,
    DeviceInfo,
    GenerationRequest,
    Modality,
    ModelId,
    RequestId,
    Shape,
    StageKind,
    StageTask,
    StageTiming,
)

MIB = 1 << 20
MODEL = ModelId("tiny")


def a_spec(model: str = MODEL, **changes: Any) -> PipelineSpec:
    values: dict[str, Any] = {
        "id": ModelId(model),
        "folder": "nowhere",
        "family": "sd3",
        "modality": Modality.IMAGE,
        "weight_bytes": dict.fromkeys(StageKind, 100 * MIB),
        "size_multiple_px": 16,
        "max_side_px": 1024,
        "default_shape": Shape(64, 64),
        "default_fps": 8,
        "default_steps": 4,
        "default_guidance": 4.0,
        "uses_negative_prompt": True,
        "limits": Limits(max_pixels=512 * 512),
        "created_s": 1_700_000_000,
    }
    return PipelineSpec(**(values | changes))


def a_request(request_id: str = "r1", **changes: Any) -> GenerationRequest:
    values: dict[str, Any] = {
        "id": RequestId(request_id),
        "model": MODEL,
        "prompt": "a red circle",
        "shape": Shape(64, 64),
        "steps": 4,
        "guidance_scale": 4.0,
        "seed": 7,
        "arrival_s": 0.0,
        "deadline_s": 100.0,
    }
    return GenerationRequest(**(values | changes))


def devices(count: int, memory_bytes: int = 1024 * MIB) -> list[DeviceInfo]:
    return [DeviceInfo(DeviceId(f"fake:{i}"), "node", memory_bytes) for i in range(count)]


def a_report(task: StageTask, **changes: Any) -> StageReport:
    values: dict[str, Any] = {
        "task": task.id,
        "kind": task.stage.kind,
        "receive_s": 0.0,
        "run_s": 1.0,
        "send_s": 0.0,
        "peak_memory_bytes": 0,
    }
    return StageReport(**(values | changes))


def a_timing(task: StageTask) -> StageTiming:
    return StageTiming(
        node=task.node,
        stage=task.stage.kind,
        device=DeviceId("fake:0"),
        attempt=task.attempt,
        started_s=0.0,
        queue_wait_s=0.0,
        load_s=0.0,
        run_s=1.0,
    )
