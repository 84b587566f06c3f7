"""Bodies and queries of `/v1/jobs`: our own view of the jobs behind pictures and videos.

Times that end in `_at` are Unix seconds; durations end in `_s`. Null means not yet, or not known.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from gateway.schemas.images import DegradedSteps
from gateway.schemas.videos import MAX_PAGE, VideoError

JobState = Literal["queued", "in_progress", "completed", "failed", "cancelled", "expired"]


class JobListQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs to list: up to `limit`, beyond the job `after`."""

    after: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGE)] = 20
    order: Literal["asc", "desc"] = "desc"
    status: JobState | None = None
    modality: Literal["image", "video"] | None = None


class QueuePlace(msgspec.Struct, frozen=True):
    """Where a waiting job stands: `position` 1 is next; `work_s` is device-seconds before it."""

    position: int
    work_s: float


class Eta(msgspec.Struct, frozen=True):
    """Between which moments a job should be finished, by the cost model."""

    earliest_at: float
    latest_at: float


class StageEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One execution of a stage: on which device, how long it waited, loaded and ran."""

    node: str
    stage: Literal["encode", "diffuse", "decode"]
    device: str
    attempt: int
    started_at: float
    queue_wait_s: float
    load_s: float
    run_s: float


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """A finished file; `url` needs no key and expires."""

    id: str
    index: int
    media_type: str
    width_px: int
    height_px: int
    size_bytes: int
    seed: str
    sha256: str
    url: str


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job. `queue` and `eta` are null in lists, and once it is over.

    `expires_at` is when a waiting job is given up, and when a completed one's files are removed.
    `degraded` is null unless it does fewer steps than wished; its steps are of the whole schedule,
    of which a job that begins with a picture does the last `steps`.
    """

    id: str
    status: JobState
    modality: Literal["image", "video"]
    model: str
    prompt: str
    size: str
    n: int
    steps: int
    degraded: DegradedSteps | None
    progress: int
    attempts: int
    cancel_requested: bool
    created_at: float
    started_at: float | None
    finished_at: float | None
    deadline_at: float
    expires_at: float | None
    request_id: str
    queue: QueuePlace | None
    eta: Eta | None
    error: VideoError | None
    stages: tuple[StageEntry, ...]
    outputs: tuple[Output, ...]
    object: Literal["job"] = "job"


class JobList(msgspec.Struct, frozen=True, kw_only=True):
    """One page; `after=last_id` asks for the next one."""

    data: tuple[Job, ...]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class JobDeleted(msgspec.Struct, frozen=True, kw_only=True):
    """A job that is gone."""

    id: str
    deleted: Literal[True] = True
    object: Literal["job.deleted"] = "job.deleted"


class CandidateCost(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run a stage: `slack_s` is what would be left of the deadline."""

    degree: int
    expected_s: float
    device_s: float
    slack_s: float


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The scheduler's last word on a stage, as it was `as_of`.

    `devices`, `batch` and `expected_s` are of the launch; a stage that waits has none.
    """

    node: str
    stage: Literal["encode", "diffuse", "decode"]
    as_of: float
    outcome: Literal["launched", "waits"]
    why: str
    devices: tuple[str, ...]
    batch: int
    expected_s: float | None
    slack_s: float
    candidates: tuple[CandidateCost, ...]


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job runs as it does. `why` tells of the job as a whole, `decisions` of its stages."""

    id: str
    status: JobState
    why: str
    deadline_at: float
    predicted_s: float | None
    work_s: float | None
    degraded: DegradedSteps | None
    queue: QueuePlace | None
    eta: Eta | None
    decisions: tuple[Decision, ...]
    object: Literal["job.schedule"] = "job.schedule"
