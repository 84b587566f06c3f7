"""The nouns of jobs: frozen values that the API, the store and the runner hand to each other.

Database rows never leave the store; these do. Times are Unix seconds of the engine's clock.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NewType
from uuid import UUID

import msgspec
from uuid_utils.compat import uuid7

from engine import GenerationRequest, Shape, StageKind, StageTiming
from engine.types import DeviceId, NodeId
from gateway.auth.principal import TenantId
from gateway.jobs.state import JobStatus

JobId = NewType("JobId", str)
ArtifactId = NewType("ArtifactId", str)
VideoId = NewType("VideoId", str)

_JOB = "job_"
_ARTIFACT = "art_"
_VIDEO = "video_"
_DIGITS = re.compile(r"[0-9a-f]{32}")


def new_job_id() -> JobId:
    """Return a fresh id; ids sort by the time they were made."""
    return job_id_of(uuid7())


def new_artifact_id() -> ArtifactId:
    """Return a fresh id; ids sort by the time they were made."""
    return artifact_id_of(uuid7())


def job_id_of(key: UUID) -> JobId:
    """Return the id that clients and logs see for a row's key."""
    return JobId(_JOB + key.hex)


def artifact_id_of(key: UUID) -> ArtifactId:
    """Return the id that links name for a row's key."""
    return ArtifactId(_ARTIFACT + key.hex)


def video_id_of(job: JobId) -> VideoId:
    """Return the id under which the Videos API shows a job."""
    return VideoId(_VIDEO + job.removeprefix(_JOB))


def job_of_video(video: str) -> JobId | None:
    """Return the job behind a video's id, or None if no video can have this id."""
    digits = video.removeprefix(_VIDEO)
    if digits == video or not _DIGITS.fullmatch(digits):
        return None
    return JobId(_JOB + digits)


def key_of(identifier: JobId | ArtifactId) -> UUID | None:
    """Return the row's key, or None if no row can have this id."""
    prefix, _, digits = identifier.partition("_")
    if prefix + "_" not in {_JOB, _ARTIFACT}:
        return None
    try:
        return UUID(hex=digits)
    except ValueError:
        return None


class JobError(msgspec.Struct, frozen=True):
    """Why a job failed.

    `message` is shown to the caller only if `caller_can_fix` it; otherwise it is for operators.
    """

    code: str
    message: str
    param: str | None = None
    caller_can_fix: bool = False


class ArtifactFacts(msgspec.Struct, frozen=True):
    """An `Artifact` without its bytes."""

    index: int
    media_type: str
    shape: Shape
    seed: int
    sha256: str


class KeptStage(msgspec.Struct, frozen=True):
    """A finished stage of a job that is not over: `blob` holds its hand-off, or its artifact.

    `attempt` is the try that finished it.
    """

    node: NodeId
    timing: StageTiming
    blob: str
    artifact: ArtifactFacts | None = None
    attempt: int = 0


def fruitless(attempts: int, kept: Sequence[KeptStage]) -> int:
    """Return how many of a job's attempts came after the last one that got it any further."""
    return attempts - max((stage.attempt for stage in kept), default=0)


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run a stage: how long it takes, what it costs, what time is left then."""

    degree: int
    expected_s: float
    device_s: float
    slack_s: float


class StageDecision(msgspec.Struct, frozen=True, kw_only=True):
    """The scheduler's last word on one stage, and what it could choose from.

    `slack_s` is how long the rest of the request could have waited at `as_of_s` without missing
    its deadline. `devices`, `batch` and `expected_s` are of the launch, if it was launched.
    """

    node: NodeId
    stage: StageKind
    as_of_s: float
    launched: bool
    why: str
    devices: tuple[DeviceId, ...]
    batch: int
    expected_s: float | None
    slack_s: float
    candidates: tuple[Candidate, ...]


class StoredArtifact(msgspec.Struct, frozen=True, kw_only=True):
    """A published output: what is known of it, and under which key its bytes are stored."""

    id: ArtifactId
    index: int
    blob: str
    media_type: str
    width_px: int
    height_px: int
    size_bytes: int
    seed: int
    sha256: str


class Lease(msgspec.Struct, frozen=True):
    """Which runner holds a job, since when and until when unless it renews."""

    owner: str
    since_s: float
    until_s: float


class NewJob(msgspec.Struct, frozen=True, kw_only=True):
    """Accepted work on its way into the table.

    `key` is a digest of the caller's idempotency key and the route, `fingerprint` of route and
    body; `retry_count` is how often an SDK has silently tried before. The rest is as in `JobRow`.
    """

    id: JobId
    tenant: TenantId
    request: GenerationRequest
    request_id: str
    traceparent: str | None
    expires_at_s: float
    predicted_s: float = 0.0
    work_s: float = 0.0
    waiters: int = 0
    key: str | None = None
    fingerprint: str | None = None
    retry_count: int = 0


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it was when it was read; `progress` is in percent of its denoise steps.

    `kept` is empty once the job is over; `schedule` and `predicted_s` are as in `JobRow`.
    `expires_at_s` is when a waiting job is given up; `content_expires_s`, when the files of a
    completed one are removed.
    """

    id: JobId
    tenant: TenantId
    status: JobStatus
    request: GenerationRequest
    request_id: str
    traceparent: str | None
    attempts: int
    cancel_requested: bool
    started_s: float | None
    finished_s: float | None
    progress: int
    error: JobError | None
    timeline: tuple[StageTiming, ...]
    artifacts: tuple[StoredArtifact, ...]
    expires_at_s: float
    predicted_s: float | None = None
    work_s: float | None = None
    waiters: int = 0
    kept: tuple[KeptStage, ...] = ()
    schedule: tuple[StageDecision, ...] = ()
    content_removed_s: float | None = None
    content_expires_s: float | None = None
