"""The diffusion engine: a library that runs stage graphs on devices. No HTTP, no database.

This module is the engine's public surface; it never imports torch.
"""

from engine.clock import SystemClock
from engine.core import EngineCore
from engine.errors import (
    EngineBusyError,
    EngineClosedError,
    EngineCrashedError,
    EngineError,
    InvalidRequestError,
    PipelineError,
    RequestCancelledError,
    RequestImpossibleError,
    RequestRefusedError,
    StageFailedError,
    WorkerLostError,
)
from engine.pipelines import PipelineSpec, open_pipeline
from engine.runs import ALONE, Along
from engine.types import (
    Artifact,
    GenerationRequest,
    GenerationResult,
    MediaFormat,
    Modality,
    ModelId,
    Preview,
    RequestId,
    Shape,
    Source,
    StageKey,
    StageKind,
    StageTiming,
    Variant,
)

__all__ = [
    "ALONE",
    "Along",
    "Artifact",
    "EngineBusyError",
    "EngineClosedError",
    "EngineCore",
    "EngineCrashedError",
    "EngineError",
    "GenerationRequest",
    "GenerationResult",
    "InvalidRequestError",
    "MediaFormat",
    "Modality",
    "ModelId",
    "PipelineError",
    "PipelineSpec",
    "Preview",
    "RequestCancelledError",
    "RequestId",
    "RequestImpossibleError",
    "RequestRefusedError",
    "Shape",
    "Source",
    "StageFailedError",
    "StageKey",
    "StageKind",
    "StageTiming",
    "SystemClock",
    "Variant",
    "WorkerLostError",
    "open_pipeline",
]
