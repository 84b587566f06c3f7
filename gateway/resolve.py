"""What image and video bodies have in common: origin, model, size, steps, source, SLO. Pure."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from engine import (
    GenerationRequest,
    InvalidRequestError,
    Modality,
    ModelId,
    PipelineSpec,
    Shape,
    Source,
)
from gateway.errors import ModelNotFoundError, RequestError
from gateway.jobs.record import JobId
from gateway.schemas.images import Extensions, SloClass
from gateway.wire import missing_parameter

_NONE: Final = "No model served here makes {}s; the operator can add one."
_SLO_SCALES: Final[Mapping[SloClass, float]] = {"interactive": 0.6, "standard": 1.0, "relaxed": 4.0}
_SIZE: Final = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})", re.ASCII)


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where and when a request came in; what the body does not say."""

    job: JobId
    tenant: str
    arrival_s: float
    random_seed: int


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """A checked request, and what has to be kept with its job: the files its source names.

    `slo_scale` is a multiple of the deployment's usual slack. To be on time, the schedule may be
    cut to `least_steps`; None: it may not.
    """

    request: GenerationRequest
    slo_scale: float = 1.0
    files: Mapping[str, bytes] = {}
    least_steps: int | None = None


class Sent(msgspec.Struct, frozen=True):
    """All that a caller sent: a body and the digests of its files. Equal ones are equal wishes."""

    body: object
    digests: tuple[str, ...]


def sent(body: object, *files: bytes | None) -> Sent:
    """Return what tells a request with files from another one."""
    return Sent(body, tuple(hashlib.sha256(file or b"").hexdigest() for file in files))


def slo_scale_of(body: Extensions) -> float:
    """Return how much slack a body asks for, in multiples of the usual one.

    Raises:
        RequestError: it names a class and a deadline.
    """
    if body.deadline_ms is not None and body.slo_class is not None:
        message = "'deadline_ms' and 'slo_class' both set the deadline; leave one of them out."
        raise RequestError(message, code="invalid_value", param="deadline_ms")
    return _SLO_SCALES[body.slo_class or "standard"]


def model_for(
    name: str | None,
    specs: Mapping[ModelId, PipelineSpec],
    modality: Modality,
    size: str | None = None,
) -> PipelineSpec:
    """Return the named model, or the first served one that makes what is asked for.

    Without a name the first that can draw `size` is taken, or the first of all if none can: its
    limits are then told.

    Raises:
        ModelNotFoundError: it is not served.
        RequestError: it makes something else, or nothing here makes what is asked for.
    """
    fitting = [spec for spec in specs.values() if spec.modality is modality]
    if name is None and not fitting:
        raise RequestError(_NONE.format(modality.value), code="invalid_value", param="model")
    if name is None:
        return next((spec for spec in fitting if _can_draw(size, spec)), fitting[0])
    if not name:
        raise missing_parameter("model")
    spec = specs.get(ModelId(name))
    if spec is None:
        raise ModelNotFoundError(name)
    if spec.modality is not modality:
        raise _wrong_kind(spec, fitting, modality)
    return spec


def _can_draw(size: str | None, spec: PipelineSpec) -> bool:
    try:
        size_for(size, spec)
    except (RequestError, InvalidRequestError):
        return False
    return True


def _wrong_kind(
    spec: PipelineSpec, fitting: Sequence[PipelineSpec], modality: Modality
) -> RequestError:
    wanted = modality.value
    names = ", ".join(f"'{other.id}'" for other in fitting)
    advice = f"Models that make {wanted}s: {names}." if names else _NONE.format(wanted)
    message = f"Model '{spec.id}' makes {spec.modality.value}s, not {wanted}s. {advice}"
    return RequestError(message, code="invalid_value", param="model")


def size_for(size: str | None, spec: PipelineSpec) -> Shape:
    """Return the shape of one frame, checked against the model.

    Raises:
        RequestError: this is no size.
        InvalidRequestError: the model cannot draw it.
    """
    usual = Shape(spec.default_shape.width_px, spec.default_shape.height_px)
    if size is None or size == "auto":
        return usual
    match = _SIZE.fullmatch(size)
    if match is None:
        message = f"Invalid value for 'size': use 'auto' or WIDTHxHEIGHT, such as {usual}."
        raise RequestError(message, code="invalid_value", param="size")
    shape = Shape(int(match[1]), int(match[2]))
    spec.check_shape(shape)
    return shape


def fitting_size(width_px: int, height_px: int, spec: PipelineSpec) -> Shape:
    """Return the size nearest to a picture's that the model can draw, in the same aspect.

    It is no larger, unless the model draws nothing that small.
    """
    shrink = min(
        1.0,
        math.sqrt(spec.limits.max_pixels / (width_px * height_px)),
        spec.max_side_px / max(width_px, height_px),
    )
    multiple = spec.size_multiple_px
    grow = math.sqrt(spec.limits.min_pixels / (width_px * height_px))
    if grow > 1:
        sides = (math.ceil(side * grow / multiple) * multiple for side in (width_px, height_px))
    else:
        fitted = (int(side * shrink) // multiple * multiple for side in (width_px, height_px))
        sides = (max(multiple, side) for side in fitted)
    shape = Shape(*sides)
    spec.check_shape(shape)
    return shape


def source_for(job: JobId, strength: float, schedule_steps: int, *, film: bool = False) -> Source:
    """Return a job's source; its files lie beside what the job will make."""
    name = f"{job}/source.{'mp4' if film else 'png'}"
    return Source(image=name, strength=strength, schedule_steps=schedule_steps)


def steps_for(asked: int | None, spec: PipelineSpec, *, usual: int) -> int:
    """Return the denoise steps: `asked`, which the model must allow, or else `usual`."""
    most = spec.limits.max_steps
    if asked is not None and asked > most:
        message = f"Invalid 'num_inference_steps': model {spec.id} takes at most {most}."
        raise RequestError(message, code="integer_above_max_value", param="num_inference_steps")
    return usual if asked is None else asked


def least_steps_of(body: Extensions, request: GenerationRequest, spec: PipelineSpec) -> int | None:
    """Return the least steps that a body allows; None if it wants all of them.

    Raises:
        RequestError: it allows no less than more than all.
        InvalidRequestError: with so few, nothing of a source would change.
    """
    least, wished = body.min_inference_steps, schedule_of(request)
    if least is None or least == wished:
        return None
    if least > wished:
        message = (
            f"Invalid 'min_inference_steps': the request asks for {wished} denoise steps, so it "
            "cannot allow no less than more."
        )
        raise RequestError(message, code="integer_above_max_value", param="min_inference_steps")
    with_schedule(request, spec, least)
    return least


def schedule_of(request: GenerationRequest) -> int:
    """Return the steps of a request's whole schedule; with a source it does only the last ones."""
    return request.steps if request.source is None else request.source.schedule_steps


def with_schedule(request: GenerationRequest, spec: PipelineSpec, steps: int) -> GenerationRequest:
    """Return a request whose whole schedule has other steps.

    Raises:
        InvalidRequestError: nothing of its source would change.
    """
    if request.source is None:
        return msgspec.structs.replace(request, steps=steps)
    source = msgspec.structs.replace(request.source, schedule_steps=steps)
    left = spec.steps_from(steps, source.strength)
    return msgspec.structs.replace(request, steps=left, source=source)


def guidance_for(asked: float | None, spec: PipelineSpec) -> float:
    """Return the guidance scale: `asked`, or else the model's own."""
    return spec.default_guidance if asked is None else asked
