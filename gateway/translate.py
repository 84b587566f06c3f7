"""Between the wire and the engine's nouns, for images. Pure: no IO, no clock, no randomness.

The request side decides every default, so that a stored request says all there is to say; the
response side reports what was resolved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from engine import (
    GenerationRequest,
    MediaFormat,
    Modality,
    ModelId,
    PipelineSpec,
    RequestId,
    StageKind,
)
from gateway.errors import RequestError
from gateway.jobs.record import Job
from gateway.resolve import Origin, guidance_for, model_for, size_for, steps_for
from gateway.schemas.images import (
    UNSUPPORTED,
    Image,
    ImageGenerationBody,
    ImagesResponse,
    InputTokens,
    OutputTokens,
    ResolvedQuality,
    Usage,
)
from gateway.wire import missing_parameter

_IMAGE_TOKEN_PX: Final = 16 * 16
_QUALITY: Final[Mapping[str, ResolvedQuality]] = {
    "auto": "medium",
    "standard": "medium",
    "hd": "high",
    "low": "low",
    "medium": "medium",
    "high": "high",
}
_STEPS_SCALE: Final[Mapping[ResolvedQuality, float]] = {"low": 0.5, "medium": 1.0, "high": 1.5}


def generation_request(
    body: ImageGenerationBody, specs: Mapping[ModelId, PipelineSpec], origin: Origin
) -> GenerationRequest:
    """Return the engine's form of a body, checked against the model it names.

    The deadline is the arrival: whoever knows the cost model sets a better one.

    Raises:
        RequestError: a parameter is wrong, or no model of ours can honour it.
        ModelNotFoundError: the model is not served.
        InvalidRequestError: the model cannot honour a parameter.
    """
    if body.prompt is None:
        raise missing_parameter("prompt")
    _refuse_unsupported(body)
    spec = model_for(body.model, specs, Modality.IMAGE)
    request = GenerationRequest(
        id=RequestId(origin.job),
        model=spec.id,
        prompt=body.prompt,
        negative_prompt=body.negative_prompt or None,
        shape=size_for(body.size, spec),
        steps=_steps(body, spec),
        guidance_scale=guidance_for(body.guidance_scale, spec),
        seed=origin.random_seed if body.seed is None else body.seed,
        n=body.n or 1,
        media=MediaFormat(body.output_format or "png"),
        compression=_compression(body),
        arrival_s=origin.arrival_s,
        deadline_s=origin.arrival_s,
        tenant=origin.tenant,
    )
    spec.check(request)
    return request


def _refuse_unsupported(body: ImageGenerationBody) -> None:
    for name in UNSUPPORTED:
        if getattr(body, name) is not None:
            message = f"Unknown parameter: '{name}'. No model served here has it; leave it out."
            raise RequestError(message, code="unknown_parameter", param=name)
    if body.stream or body.partial_images:
        param = "stream" if body.stream else "partial_images"
        message = f"'{param}' is not supported here; ask for the finished images only."
        raise RequestError(message, code="invalid_value", param=param)
    if body.background == "transparent":
        message = "Transparent backgrounds are not supported here; use 'opaque' or 'auto'."
        raise RequestError(message, code="invalid_value", param="background")


def resolved_quality(body: ImageGenerationBody) -> ResolvedQuality:
    """Return the quality that was used: never `auto`, nor a legacy word."""
    return _QUALITY[body.quality or "auto"]


def _steps(body: ImageGenerationBody, spec: PipelineSpec) -> int:
    """Explicit steps win; otherwise quality scales the model's default."""
    scaled = spec.default_steps * _STEPS_SCALE[resolved_quality(body)]
    usual = min(spec.limits.max_steps, max(1, math.ceil(scaled)))
    return steps_for(body.num_inference_steps, spec, usual=usual)


def _compression(body: ImageGenerationBody) -> int:
    """PNG is lossless: upstream wants the parameter left out there; its default does no harm."""
    value = 100 if body.output_compression is None else body.output_compression
    if (body.output_format or "png") == "png" and value != 100:  # noqa: PLR2004 - the default
        message = "'output_compression' needs 'output_format' to be 'jpeg' or 'webp'."
        raise RequestError(message, code="invalid_value", param="output_compression")
    return value


def images_response(
    job: Job, body: ImageGenerationBody, images: tuple[Image, ...]
) -> ImagesResponse:
    """Return the answer for a completed job."""
    request = job.request
    return ImagesResponse(
        created=int(job.finished_s or request.arrival_s),
        data=images,
        background="opaque",
        output_format=body.output_format or "png",
        quality=resolved_quality(body),
        size=str(request.shape),
        usage=usage_of(request),
        seed=request.seed,
        safety_identifier=body.safety_identifier or body.user or None,
    )


def usage_of(request: GenerationRequest) -> Usage:
    """Count a request's work; see `Usage` for what a token is."""
    text = len(request.prompt.split())
    image = request.n * math.ceil(request.shape.pixels / _IMAGE_TOKEN_PX)
    return Usage(
        input_tokens=text,
        output_tokens=image,
        total_tokens=text + image,
        input_tokens_details=InputTokens(text_tokens=text, image_tokens=0),
        output_tokens_details=OutputTokens(image_tokens=image, text_tokens=0),
    )


def server_timing(job: Job) -> str:
    """Return a Server-Timing value in milliseconds.

    `queue` is time in the job table and in front of stages; the stages are load plus run. All are
    added up over outputs and attempts, so with n > 1 they can exceed `total`, which is wall time.
    """
    arrival_s = job.request.arrival_s
    in_table_s = max(0.0, (job.started_s or arrival_s) - arrival_s)
    parts = {"queue": in_table_s + sum(timing.queue_wait_s for timing in job.timeline)}
    for kind in StageKind:
        parts[kind.value] = sum(t.load_s + t.run_s for t in job.timeline if t.stage is kind)
    parts["total"] = (job.finished_s or arrival_s) - arrival_s
    return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in parts.items())
