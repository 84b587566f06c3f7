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


class Purpose(StrEnum):
    """What a task asks of its stage's weights."""

    MAIN = "main"  # what the stage is there for
    IMAGE_ENCODE = "image_encode"  # the autoencoder the other way: source pictures to latents
    PREVIEW = "preview"  # decode a latent that is not finished, to show how far it is


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


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Pictures that a request begins with instead of pure noise.

    Attributes:
        image: name of a PNG of the request's size; for a video also of an MP4 of its frames.
        mask: name of a PNG of that size: white is painted anew, black is kept; None: all is new.
        strength: above 0 and up to 1: the share of the schedule that is denoised again.
        schedule_steps: steps of the whole schedule, of which the request's `steps` are the last.
        origin: where the picture comes from, in words of the caller's; nothing to the engine.
    """

    image: str
    strength: float
    schedule_steps: int
    mask: str | None = None
    origin: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files that have to be there before the request can run."""
        return (self.image,) if self.mask is None else (self.image, self.mask)


class Degraded(msgspec.Struct, frozen=True, kw_only=True):
    """That a request was admitted with fewer denoise steps than it asked for, as it allowed.

    Steps are of the whole schedule, of which a request with a source does the last part. With
    `wished_steps` it was expected to end `late_s` seconds after its deadline.
    """

    wished_steps: int
    least_steps: int
    used_steps: int
    late_s: float


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A validated wish for `n` outputs of one model.

    Output `i` is drawn with seed `seed + i`, so the first of several equals the single one.
    `compression` is 0..100, OpenAI's `output_compression`; it has no meaning for PNG and MP4.
    `fps` is frames per second of a video. `priority` is a class of service: higher goes first.
    `previews` is how often each output is shown while it is being made; that changes no output.
    `http_request` is the id of the call that asked for it: for lines of the log, nothing else.
    `degraded` tells that `steps` are fewer than was asked for.
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
    priority: int = 0
    previews: int = 0
    source: Source | None = None
    traceparent: str | None = None
    http_request: str | None = None
    degraded: Degraded | None = None


class HandoffRef(msgspec.Struct, frozen=True):
    """Where the tensors of one finished node lie: a safetensors file in shared memory.

    `host` is the address of another machine's hand-off server; empty if the file lies here.
    """

    node: NodeId
    path: str
    size_bytes: int
    host: str = ""


class SavedLatent(msgspec.Struct, frozen=True):
    """Where a paused diffuse stands: its latent and sampler state after `step` denoise steps."""

    step: int
    ref: HandoffRef


class StageTask(msgspec.Struct, frozen=True, kw_only=True):
    """A node whose inputs are there: what a dispatcher places on a team.

    `sequence` numbers requests in order of submission; together with deadline and arrival it
    makes the order of tasks total. `came_from` is the team whose memory is nearest to the inputs:
    the one that ran the stage before, or this stage until it was paused. `saved` is set on a
    diffuse that was paused. `alone` says that it failed together with others and must share no
    launch; `failed_on` are the devices of its failed attempts, which others are better than.
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
    came_from: tuple[DeviceId, ...] = ()
    saved: SavedLatent | None = None
    alone: bool = False
    failed_on: tuple[DeviceId, ...] = ()
    purpose: Purpose = Purpose.MAIN

    @property
    def steps_done(self) -> int:
        """Denoise steps that earlier executions have done; 0 for other stages."""
        return 0 if self.saved is None else self.saved.step

    @property
    def steps_left(self) -> int:
        """Denoise steps to do; 0 for other stages."""
        if self.stage.kind is not StageKind.DIFFUSE:
            return 0
        return self.request.steps - self.steps_done

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


class Placement(msgspec.Struct, frozen=True):
    """Which stages each device should hold, and why: a desired state, adopted lazily."""

    version: int
    stages: Mapping[DeviceId, frozenset[StageKey]]
    why: str = ""


class Leg(msgspec.Struct, frozen=True):
    """A stage that follows in the same launch, of the same request and output, on the same team."""

    stage: StageKey
    expected_s: float
    activation_bytes: int


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """A task for a team of devices (one device per degree), with what it is expected to cost.

    `riders` are further tasks of the same stage that share the launch: a batch. `then` are the
    stages that the team goes on with, in order, without asking again. `activation_bytes` is per
    device and of the task alone; `expected_s` covers the task from its acquisition on.

    `follows` is set by the core on the orders for such stages: the task whose output is the input.
    If that makes none (it fails, is cancelled or paused), the order is refused.
    """

    task: StageTask
    team: tuple[DeviceId, ...]
    expected_s: float
    activation_bytes: int
    why: str
    riders: tuple[StageTask, ...] = ()
    then: tuple[Leg, ...] = ()
    follows: TaskId | None = None

    @property
    def stages(self) -> frozenset[StageKey]:
        """All stages that have to be resident for the launch."""
        return frozenset({self.task.stage, *(leg.stage for leg in self.then)})

    @property
    def peak_activation_bytes(self) -> int:
        """Most that the task and what follows it take at once, per device."""
        return max([self.activation_bytes, *(leg.activation_bytes for leg in self.then)])

    @property
    def until_end_s(self) -> float:
        """Seconds that the task and what follows it are expected to take."""
        return self.expected_s + sum(leg.expected_s for leg in self.then)

    @property
    def degree(self) -> int:
        """Parallel degree: the number of devices in the team."""
        return len(self.team)

    @property
    def tasks(self) -> tuple[StageTask, ...]:
        """All tasks of the launch."""
        return (self.task, *self.riders)


class RunningView(msgspec.Struct, frozen=True, kw_only=True):
    """One launch in the air as policies see it.

    `step` denoise steps were done at `step_at_s` (the launch's start until the first boundary).
    `is_changing` tells that a pause or resize was asked for and takes effect at the next boundary.
    """

    assignment: Assignment
    started_s: float
    ends_s: float
    step: int
    step_at_s: float
    is_changing: bool


class ClusterView(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster at a moment.

    Attributes:
        configured: ids of all devices of the deployment that are known, whether they live now or not.
        is_whole: whether all are known; not while a node was never reached.
        devices: the live ones that are in service.
        quarantined: live or not, kept out of service because launches failed on them.
        weight_bytes: what each stage's weights take on a device.
        running: every launch that holds a team, in order of launch.
        placement_version: of the placement that `desired` comes from.
    """

    configured: tuple[DeviceId, ...]
    devices: tuple[DeviceView, ...]
    weight_bytes: Mapping[StageKey, int]
    now_s: float
    running: tuple[RunningView, ...] = ()
    placement_version: int = 0
    quarantined: frozenset[DeviceId] = frozenset()
    is_whole: bool = True

    @property
    def lacks_devices(self) -> bool:
        """Whether devices are missing, which may come or come back."""
        return not self.is_whole or len(self.devices) < len(self.configured)


class Held(msgspec.Struct, frozen=True):
    """A ready task that was not placed, and why.

    `impossible` says that it can never run here, `refused` that it could only end too late and is
    given up; both end the request.
    """

    task: StageTask
    reason: str
    impossible: bool = False
    refused: bool = False


Decision = Assignment | Held  # the last word on a task


class Pause(msgspec.Struct, frozen=True):
    """Stop a running diffuse at its next step boundary and free its team; its latent is kept."""

    task: TaskId
    why: str


class Resize(msgspec.Struct, frozen=True):
    """Move a running diffuse to another team at its next step boundary.

    `onward` is the launch that follows; its `task` may be the running one, since the core puts the
    resumed task in its place. Devices that `onward.team` adds must be idle and are taken at once.
    """

    task: TaskId
    onward: Assignment


class Prefetch(msgspec.Struct, frozen=True):
    """Load a stage on a device while its task queues or the device still runs another."""

    device: DeviceId
    stage: StageKey


class DispatchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One decision of a dispatcher over all ready tasks and all running diffuses."""

    id: PlanId
    assignments: tuple[Assignment, ...] = ()
    held: tuple[Held, ...] = ()
    pauses: tuple[Pause, ...] = ()
    resizes: tuple[Resize, ...] = ()
    prefetches: tuple[Prefetch, ...] = ()
    next_decision_at_s: float | None = None


class Variant(msgspec.Struct, frozen=True):
    """Another view of an artifact, such as one frame of a video."""

    name: str
    content: bytes
    media_type: str


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """Finished bytes of one output: a complete image or video file."""

    index: int
    content: bytes
    media_type: str
    shape: Shape
    seed: int
    sha256: str
    variants: tuple[Variant, ...] = ()


class Preview(msgspec.Struct, frozen=True):
    """An output as it would be if the sampler stopped now; `index` counts those of one output."""

    index: int
    artifact: Artifact


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
