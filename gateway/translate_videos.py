"""Between the wire and the engine's nouns, for videos. Pure, like `translate.py` for images."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

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
from gateway.jobs.progress import MOST_UNFINISHED
from gateway.jobs.record import Job, JobId, video_id_of
from gateway.jobs.state import TERMINAL, JobStatus
from gateway.resolve import (
    Origin,
    Wish,
    guidance_for,
    least_steps_of,
    model_for,
    schedule_of,
    size_for,
    slo_scale_of,
    source_for,
    steps_for,
)
from gateway.schemas.images import Extensions
from gateway.schemas.videos import (
    Phase,
    RemixBody,
    Status,
    Video,
    VideoBody,
    VideoError,
    VideoList,
)
from gateway.translate import degraded_of
from gateway.wire import missing_parameter

_SECONDS: Final = re.compile(r"\d{1,6}(\.\d{1,9})?", re.ASCII)
_MILLIS: Final = 1000
REFERENCE_STRENGTH: Final = 0.8
REMIX_STRENGTH: Final = 0.7
_FINISHED: Final = 100
_STATUSES: Final[Mapping[JobStatus, Status]] = {
    JobStatus.QUEUED: "queued",
    JobStatus.IN_PROGRESS: "in_progress",
    JobStatus.COMPLETED: "completed",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "failed",
    JobStatus.EXPIRED: "failed",
}
_ENDINGS: Final[Mapping[JobStatus, tuple[str, str]]] = {
    JobStatus.CANCELLED: ("cancelled", "The {} was cancelled before it was finished."),
    JobStatus.EXPIRED: (
        "expired",
        "The {} was not finished within the server's time limit. Ask again later.",
    ),
}
# The SDK's helper keeps the first interval for all its polls, so a whole rest would be too coarse.
_POLLS_PER_REST: Final = 10
_POLL_MS: Final = (200, 10_000)
_USUAL_POLL_MS: Final = 1000


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """What a video begins with: one picture of `shape`, or a film that another job made."""

    content: bytes
    film: bool = False
    origin: str | None = None


def video_request(
    body: VideoBody,
    specs: Mapping[ModelId, PipelineSpec],
    origin: Origin,
    *,
    size: Shape | None = None,
    start: Start | None = None,
) -> Wish:
    """Return what a body asks for, checked against the model it names.

    `size` is set where a reference picture decides it. The deadline is the arrival: whoever knows
    the cost model sets a better one.

    Raises:
        RequestError: a parameter is wrong, or no model of ours can honour it.
        ModelNotFoundError: the model is not served.
        InvalidRequestError: the model cannot honour a parameter.
    """
    if body.prompt is None:
        raise missing_parameter("prompt")
    spec = model_for(body.model, specs, Modality.VIDEO, body.size)
    size, fps = size or size_for(body.size, spec), body.fps or spec.default_fps
    request = GenerationRequest(
        id=RequestId(origin.job),
        model=spec.id,
        prompt=body.prompt,
        negative_prompt=body.negative_prompt or None,
        shape=Shape(size.width_px, size.height_px, _frames(body, spec, fps)),
        fps=fps,
        steps=steps_for(body.num_inference_steps, spec, usual=spec.default_steps),
        guidance_scale=guidance_for(body.guidance_scale, spec),
        seed=origin.random_seed if body.seed is None else body.seed,
        media=MediaFormat.MP4,
        arrival_s=origin.arrival_s,
        deadline_s=origin.arrival_s,
        tenant=origin.tenant,
        priority=body.priority or 0,
    )
    return _begun_with(start, body.strength or REFERENCE_STRENGTH, request, spec, body)


def remix_request(
    body: RemixBody, source: Job, spec: PipelineSpec, origin: Origin, start: Start
) -> Wish:
    """Return a video like `source`, as another prompt says; raises as above."""
    if body.prompt is None:
        raise missing_parameter("prompt")
    before = source.request
    degraded = before.degraded  # what was wished then, not what there was time for
    schedule = schedule_of(before) if degraded is None else degraded.wished_steps
    request = msgspec.structs.replace(
        before,
        id=RequestId(origin.job),
        prompt=body.prompt,
        negative_prompt=body.negative_prompt or before.negative_prompt,
        steps=steps_for(body.num_inference_steps, spec, usual=schedule),
        guidance_scale=(
            before.guidance_scale if body.guidance_scale is None else body.guidance_scale
        ),
        seed=origin.random_seed if body.seed is None else body.seed,
        arrival_s=origin.arrival_s,
        deadline_s=origin.arrival_s,
        tenant=origin.tenant,
        priority=body.priority or 0,
        traceparent=None,
        source=None,
        degraded=None,
    )
    return _begun_with(start, body.strength or REMIX_STRENGTH, request, spec, body)


def _begun_with(
    start: Start | None,
    strength: float,
    request: GenerationRequest,
    spec: PipelineSpec,
    body: Extensions,
) -> Wish:
    files: dict[str, bytes] = {}
    if start is not None:
        source = source_for(JobId(request.id), strength, request.steps, film=start.film)
        source = msgspec.structs.replace(source, origin=start.origin)
        steps = spec.steps_from(source.schedule_steps, strength)
        request = msgspec.structs.replace(request, source=source, steps=steps)
        files[source.image] = start.content
    spec.check(request)
    return Wish(
        request=request,
        slo_scale=slo_scale_of(body),
        files=files,
        least_steps=least_steps_of(body, request, spec),
    )


def _frames(body: VideoBody, spec: PipelineSpec, fps: int) -> int:
    most = spec.limits.max_frames
    if body.frames is not None and body.seconds is not None:
        message = "'frames' and 'seconds' both set the length; leave one of them out."
        raise RequestError(message, code="invalid_value", param="frames")
    if body.frames is not None and body.frames > most:
        message = f"Invalid 'frames': model {spec.id} makes at most {most}."
        raise RequestError(message, code="integer_above_max_value", param="frames")
    if body.frames is not None or body.seconds is None:
        return body.frames or spec.default_shape.frames
    frames = max(1, round(_seconds(body.seconds) * fps))
    if frames > most:
        longest = decimal(math.floor(most * _MILLIS / fps) / _MILLIS)
        message = (
            f"Invalid 'seconds': model {spec.id} makes at most {longest} seconds "
            f"({most} frames at {fps} per second)."
        )
        raise RequestError(message, code="invalid_value", param="seconds")
    return frames


def _seconds(value: str | float) -> float:
    is_number = not isinstance(value, str) or _SECONDS.fullmatch(value.strip()) is not None
    seconds = float(value) if is_number else 0.0
    if not 0 < seconds < math.inf:
        message = "Invalid value for 'seconds': use a number above 0 as text, such as '2' or '1.5'."
        raise RequestError(message, code="invalid_value", param="seconds")
    return seconds


def decimal(value: float) -> str:
    """Return a number with at most three decimals and no zeros at its end."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def video_of(job: Job, *, eta_s: float | None = None) -> Video:
    """Return what clients see of a video job; its status never goes back."""
    request, completed = job.request, job.status is JobStatus.COMPLETED
    begun_again = job.status is JobStatus.QUEUED and job.started_s is not None
    source = request.source
    return Video(
        id=video_id_of(job.id),
        status="in_progress" if begun_again else _STATUSES[job.status],
        progress=_FINISHED if completed else min(job.progress, _FINISHED - 1),
        created_at=int(request.arrival_s),
        completed_at=int(job.finished_s) if completed and job.finished_s is not None else None,
        expires_at=None if job.content_expires_s is None else int(job.content_expires_s),
        model=request.model,
        prompt=request.prompt,
        size=f"{request.shape.width_px}x{request.shape.height_px}",
        seconds=decimal(request.shape.frames / request.fps),
        remixed_from_video_id=None if source is None else source.origin,
        error=error_of(job),
        frames=request.shape.frames,
        fps=request.fps,
        seed=request.seed,
        phase=_phase_of(job),
        step=request.steps if completed else _steps_done(job),
        steps=request.steps,
        eta_s=None if eta_s is None or job.status in TERMINAL else round(eta_s, 3),
        degraded=degraded_of(request),
    )


def _phase_of(job: Job) -> Phase | None:
    """Return what is being done by the steps that are written down; encode until there is one."""
    if job.status in TERMINAL:
        return None
    if job.status is JobStatus.QUEUED:
        return "queued"
    if job.progress >= MOST_UNFINISHED:
        return "decode"
    return "diffuse" if job.progress else "encode"


def _steps_done(job: Job) -> int:
    """Return the denoise steps behind a percentage, which was rounded down."""
    return math.ceil(min(job.progress, _FINISHED) * job.request.steps / _FINISHED)


def error_of(job: Job) -> VideoError | None:
    """Return why a job did not complete, in words for its owner."""
    kind = job.request.media.modality.value
    if job.error is None and job.status in _ENDINGS:
        code, message = _ENDINGS[job.status]
        return VideoError(code, message.format(kind))
    if job.error is None:
        return None
    if job.error.caller_can_fix:
        return VideoError(job.error.code, job.error.message, job.error.param)
    message = (
        f"The server had an error while making this {kind}. If it happens again, tell the operator "
        f"the request id {job.request_id}."
    )
    return VideoError(job.error.code, message)


def video_list(jobs: Sequence[Job], *, has_more: bool) -> VideoList:
    """Return one page; an empty one never has more, because no cursor could lead there."""
    videos = tuple(video_of(job) for job in jobs)
    return VideoList(
        data=videos,
        first_id=videos[0].id if videos else None,
        last_id=videos[-1].id if videos else None,
        has_more=has_more and bool(videos),
    )


def rest_s(job: Job, latency_s: float) -> float:
    """Return the seconds that a job still takes, `latency_s` being what it takes alone."""
    return latency_s * (1 - min(job.progress, _FINISHED) / _FINISHED)


def poll_after_ms(job: Job, *, eta_s: float | None) -> int:
    """Return when to ask for a job again: a tenth of what is left, within bounds."""
    if eta_s is None or job.status not in {JobStatus.QUEUED, JobStatus.IN_PROGRESS}:
        return _USUAL_POLL_MS
    least, most = _POLL_MS
    return round(min(most, max(least, _MILLIS * eta_s / _POLLS_PER_REST)))
