"""Between the wire and the engine's nouns, for images. Pure: no IO, no clock, no randomness.

The request side decides every default, so that a stored request says all there is to say; the
response side reports what was resolved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec
from msgspec import structs

from engine import (
    GenerationRequest,
    MediaFormat,
    Modality,
    ModelId,
    PipelineSpec,
    RequestId,
    Shape,
)
from gateway.errors import RequestError
from gateway.jobs.record import Job
from gateway.resolve import (
    Origin,
    Wish,
    guidance_for,
    least_steps_of,
    model_for,
    size_for,
    slo_scale_of,
    source_for,
    steps_for,
)
from gateway.schemas.images import (
    MAX_GUIDANCE,
    UNSUPPORTED,
    DegradedSteps,
    Image,
    ImageEditBody,
    ImageEvent,
    ImageFields,
    ImageGenerationBody,
    ImagesResponse,
    ImageVariationBody,
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
# How much of a picture is painted anew: the library's own defaults for each kind of edit.
_STRENGTH: Final[Mapping[Literal["high", "low"], float]] = {"high": 0.6, "low": 0.8}
_MASKED_STRENGTH: Final = 1.0
_VARIATION_STRENGTH: Final = 0.6
_STYLE_GUIDANCE: Final[Mapping[Literal["vivid", "natural"], float]] = {"vivid": 1.3, "natural": 0.8}
_STEPS_SCALE: Final[Mapping[ResolvedQuality, float]] = {"low": 0.5, "medium": 1.0, "high": 1.5}


def generation_request(
    body: ImageGenerationBody, specs: Mapping[ModelId, PipelineSpec], origin: Origin
) -> Wish:
    """Return what a body asks for, checked against the model it names.

    The deadline is the arrival: whoever knows the cost model sets a better one.

    Raises:
        RequestError: a parameter is wrong, or no model of ours can honour it.
        ModelNotFoundError: the model is not served.
        InvalidRequestError: the model cannot honour a parameter.
    """
    if body.prompt is None:
        raise missing_parameter("prompt")
    spec = model_for(body.model, specs, Modality.IMAGE, body.size)
    request = _request(body, spec, origin, body.prompt, size_for(body.size, spec))
    if body.style is not None and body.guidance_scale is None:
        scale = request.guidance_scale * _STYLE_GUIDANCE[body.style]
        request = structs.replace(request, guidance_scale=min(scale, MAX_GUIDANCE))
    spec.check(request)
    return Wish(
        request=request,
        slo_scale=slo_scale_of(body),
        least_steps=least_steps_of(body, request, spec),
    )


class Edit(msgspec.Struct, frozen=True, kw_only=True):
    """A picture to begin with, as it will be drawn: PNG files of `shape`, and how much is new."""

    shape: Shape
    image: bytes
    mask: bytes | None
    strength: float


def edit_request(
    body: ImageEditBody | ImageVariationBody, spec: PipelineSpec, edit: Edit, origin: Origin
) -> Wish:
    """Return what a body asks for that begins with a picture; raises as above."""
    request = _request(body, spec, origin, body.prompt or "", edit.shape)
    source = source_for(origin.job, edit.strength, request.steps)
    files = {source.image: edit.image}
    if edit.mask is not None:
        source = structs.replace(source, mask=f"{origin.job}/mask.png")
        files[f"{origin.job}/mask.png"] = edit.mask
    steps = spec.steps_from(source.schedule_steps, source.strength)
    request = structs.replace(request, steps=steps, source=source)
    spec.check(request)
    return Wish(
        request=request,
        slo_scale=slo_scale_of(body),
        files=files,
        least_steps=least_steps_of(body, request, spec),
    )


def strength_of(body: ImageEditBody | ImageVariationBody, *, masked: bool) -> float:
    """Return how much of a picture is painted anew: as asked, or by what is asked for."""
    if body.strength is not None:
        return body.strength
    if isinstance(body, ImageVariationBody):
        return _VARIATION_STRENGTH
    if masked:
        return _MASKED_STRENGTH
    return _STRENGTH[body.input_fidelity or "low"]


def _request(
    body: ImageFields, spec: PipelineSpec, origin: Origin, prompt: str, shape: Shape
) -> GenerationRequest:
    _refuse_unsupported(body)
    return GenerationRequest(
        id=RequestId(origin.job),
        model=spec.id,
        prompt=prompt,
        negative_prompt=body.negative_prompt or None,
        shape=shape,
        steps=_steps(body, spec),
        guidance_scale=guidance_for(body.guidance_scale, spec),
        seed=origin.random_seed if body.seed is None else body.seed,
        n=body.n or 1,
        media=MediaFormat(body.output_format or "png"),
        compression=_compression(body),
        arrival_s=origin.arrival_s,
        deadline_s=origin.arrival_s,
        tenant=origin.tenant,
        priority=body.priority or 0,
        previews=(body.partial_images or 0) if body.stream else 0,
    )


def _refuse_unsupported(body: ImageFields) -> None:
    for name in UNSUPPORTED:
        if getattr(body, name, None) is not None:
            message = f"Unknown parameter: '{name}'. No model served here has it; leave it out."
            raise RequestError(message, code="unknown_parameter", param=name)
    if body.background == "transparent":
        message = (
            "No model served here draws transparent backgrounds: their decoders make red, green "
            "and blue, and no alpha. Use 'opaque' or 'auto' for 'background'."
        )
        raise RequestError(message, code="invalid_value", param="background")
    if body.stream and body.response_format == "url":
        message = "A stream carries its images; use 'b64_json' for 'response_format' or no stream."
        raise RequestError(message, code="invalid_value", param="response_format")


def resolved_quality(body: ImageFields) -> ResolvedQuality:
    """Return the quality that was used: never `auto`, nor a legacy word."""
    return _QUALITY[body.quality or "auto"]


def _steps(body: ImageFields, spec: PipelineSpec) -> int:
    """Explicit steps win; otherwise quality scales the model's default."""
    scaled = spec.default_steps * _STEPS_SCALE[resolved_quality(body)]
    usual = min(spec.limits.max_steps, max(1, math.ceil(scaled)))
    return steps_for(body.num_inference_steps, spec, usual=usual)


def _compression(body: ImageFields) -> int:
    """PNG is lossless: upstream wants the parameter left out there; its default does no harm."""
    value = 100 if body.output_compression is None else body.output_compression
    if (body.output_format or "png") == "png" and value != 100:  # noqa: PLR2004 - the default
        message = "'output_compression' needs 'output_format' to be 'jpeg' or 'webp'."
        raise RequestError(message, code="invalid_value", param="output_compression")
    return value


def images_response(job: Job, body: ImageFields, images: tuple[Image, ...]) -> ImagesResponse:
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
        safety_identifier=safety_identifier_of(body),
        degraded=degraded_of(request),
    )


def degraded_of(request: GenerationRequest) -> DegradedSteps | None:
    """Return how many steps a request does and wished for; None if these are the same."""
    how = request.degraded
    if how is None:
        return None
    return DegradedSteps(wished_steps=how.wished_steps, used_steps=how.used_steps)


def safety_identifier_of(body: ImageFields) -> str | None:
    """Return the end user's identifier: the newer field beats the older one."""
    return body.safety_identifier or body.user or None


def partial_event(
    prefix: str, job: Job, body: ImageFields, *, image_index: int, number: int, content: str
) -> ImageEvent:
    """Return the event of a preview; `prefix` is `image_generation` or `image_edit`."""
    return _event(
        f"{prefix}.partial_image",
        job,
        body,
        content,
        image_index=image_index,
        partial_image_index=number,
        created_at=int(job.started_s or job.request.arrival_s),
    )


def completed_event(
    prefix: str, job: Job, body: ImageFields, *, image_index: int, content: str
) -> ImageEvent:
    """Return the event of a finished image, with the usage of this image alone."""
    one = structs.replace(job.request, n=1)
    return _event(
        f"{prefix}.completed",
        job,
        body,
        content,
        image_index=image_index,
        created_at=int(job.finished_s or job.request.arrival_s),
        usage=structs.replace(usage_of(one), output_tokens_details=None),
        seed=job.request.seed + image_index,
        safety_identifier=safety_identifier_of(body),
        degraded=degraded_of(job.request),
    )


def _event(kind: str, job: Job, body: ImageFields, content: str, **more: Any) -> ImageEvent:
    return ImageEvent(
        type=kind,
        b64_json=content,
        size=str(job.request.shape),
        quality=resolved_quality(body),
        background="opaque",
        output_format=body.output_format or "png",
        **more,
    )


def usage_of(request: GenerationRequest) -> Usage:
    """Count a request's work; see `Usage` for what a token is."""
    text = len(request.prompt.split())
    pixels = math.ceil(request.shape.pixels / _IMAGE_TOKEN_PX)
    given, image = (pixels if request.source else 0), request.n * pixels
    return Usage(
        input_tokens=text + given,
        output_tokens=image,
        total_tokens=text + given + image,
        input_tokens_details=InputTokens(text_tokens=text, image_tokens=given),
        output_tokens_details=OutputTokens(image_tokens=image, text_tokens=0),
    )
