"""The engine's nouns: frozen values that travel between gateway, core, policies and executors.

Imports msgspec and the standard library only, so that every package and the simulator can use
them. Times are seconds on the engine's `Clock` (Unix epoch, never stepping back); sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NewType

import msgspec

RequestId = NewType("RequestId", str)
TaskId = NewType("TaskId", str)
DeviceId = NewType("DeviceId", str)
NodeId = NewType("NodeId", str)
PlanId = NewType("PlanId", int)
ModelId = NewType("ModelId", str)


class StageKind(StrEnum):
    """What a stage does; the paper's E, D and C."""

    ENCODE = "encode"
    DIFFUSE = "diffuse"
    DECODE = "decode"


class Modality(StrEnum):
    """What a model makes."""

    IMAGE = "image"
    VIDEO = "video"


class MediaFormat(StrEnum):
    """File formats that a decode stage can write."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    MP4 = "mp4"

    @property
    def modality(self) -> Modality:
        """Return what a file of this format holds."""
        return Modality.VIDEO if self is MediaFormat.MP4 else Modality.IMAGE

    @property
    def media_type(self) -> str:
        """Return the MIME type."""
        return f"{self.modality.value}/{self.value}"


class StageKey(msgspec.Struct, frozen=True, order=True):
    """One stage of one model: the unit that is placed, loaded and resident on a device."""

    model: ModelId
    kind: StageKind

    def __str__(self) -> str:
        """Return `model/kind`, the form used in logs and span attributes."""
        return f"{self.model}/{self.kind.value}"


class Shape(msgspec.Struct, frozen=True, order=True):
    """Size of one output in pixels and frames; an image has one frame."""

    width_px: int
    height_px: int
    frames: int = 1

    def __str__(self) -> str:
        """Return `WxH` for images and `WxHxF` for videos."""
        size = f"{self.width_px}x{self.height_px}"
        return size if self.frames == 1 else f"{size}x{self.frames}"

    @property
    def pixels(self) -> int:
        """Pixels over all frames; durations and activations are modelled on it."""
        return self.width_px * self.height_px * self.frames


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A validated wish for `n` outputs of one model.

    Output `i` is drawn with seed `seed + i`, so the first of several equals the single one.
    `compression` is 0..100, OpenAI's `output_compression`; it has no meaning for PNG and MP4.
    `fps` is frames per second of a video.
    """

    id: RequestId
    model: ModelId
    prompt: str
    shape: Shape
    steps: int
    guidance_scale: float
    seed: int
    arrival_s: float
    deadline_s: float
    negative_prompt: str | None = None
    n: int = 1
    media: MediaFormat = MediaFormat.PNG
    compression: int = 100
    fps: int = 8
    tenant: str = "default"
    traceparent: str | None = None


class HandoffRef(msgspec.Struct, frozen=True):
    """Where the tensors of one finished node lie: a safetensors file in shared memory."""

    node: NodeId
    path: str
    size_bytes: int


class StageTask(msgspec.Struct, frozen=True, kw_only=True):
    """A node whose inputs are there: what a dispatcher places on a team.

    `sequence` numbers requests in order of submission; together with deadline and arrival it
    makes the order of tasks total.
    """

    id: TaskId
    request: GenerationRequest
    node: NodeId
    stage: StageKey
    image_index: int
    inputs: tuple[HandoffRef, ...]
    sequence: int
    attempt: int
    ready_s: float

    @property
    def order(self) -> tuple[float, float, int, int]:
        """Key of the total order: deadline, arrival, submission, output index."""
        return (
            self.request.deadline_s,
            self.request.arrival_s,
            self.sequence,
            self.image_index,
        )


class DeviceInfo(msgspec.Struct, frozen=True):
    """A device as its worker process found it."""

    id: DeviceId
    node: str
    memory_bytes: int


class DeviceView(msgspec.Struct, frozen=True, kw_only=True):
    """One live device as policies see it at a moment.

    `capacity_bytes` is what weights and activations may take together; `busy_until_s` is when its
    team is expected to finish, None if it is idle.
    """

    info: DeviceInfo
    capacity_bytes: int
    free_bytes: int
    resident: frozenset[StageKey]
    desired: frozenset[StageKey]
    busy_until_s: float | None


class ClusterView(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster at a moment.

    Attributes:
        configured: ids of all devices of the deployment, whether they live now or not.
        devices: the live ones.
        weight_bytes: what each stage's weights take on a device.
    """

    configured: tuple[DeviceId, ...]
    devices: tuple[DeviceView, ...]
    weight_bytes: Mapping[StageKey, int]
    now_s: float


class Placement(msgspec.Struct, frozen=True):
    """Which stages each device should hold: a desired state, adopted lazily."""

    version: int
    stages: Mapping[DeviceId, frozenset[StageKey]]


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """A task for a team of devices (one device per degree), with what it is expected to cost."""

    task: StageTask
    team: tuple[DeviceId, ...]
    expected_s: float
    activation_bytes: int
    why: str

    @property
    def degree(self) -> int:
        """Parallel degree: the number of devices in the team."""
        return len(self.team)


class Held(msgspec.Struct, frozen=True):
    """A ready task that was not placed, and why; `impossible` if no wait can help."""

    task: StageTask
    reason: str
    impossible: bool = False


class DispatchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One decision of a dispatcher over all ready tasks."""

    id: PlanId
    assignments: tuple[Assignment, ...] = ()
    held: tuple[Held, ...] = ()
    next_decision_at_s: float | None = None


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """Finished bytes of one output: a complete image or video file."""

    index: int
    content: bytes
    media_type: str
    shape: Shape
    seed: int
    sha256: str


class StageTiming(msgspec.Struct, frozen=True, kw_only=True):
    """What one stage execution took, for the job's record and the Server-Timing header."""

    node: NodeId
    stage: StageKind
    device: DeviceId
    attempt: int
    started_s: float
    queue_wait_s: float
    load_s: float
    run_s: float


class GenerationResult(msgspec.Struct, frozen=True):
    """What a request ends with when it succeeds: artifacts in order of their index."""

    artifacts: tuple[Artifact, ...]
    timeline: tuple[StageTiming, ...]
