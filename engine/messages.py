"""The whole vocabulary between controller and worker process: msgspec structs on a ZMQ socket.

Never pickle: a message is msgpack with a type tag. Tensors do not travel here; they lie in
shared memory and messages carry `HandoffRef`s.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from engine.types import Artifact, HandoffRef, StageKey, StageKind, StageTask, TaskId


class LoadSource(StrEnum):
    """Where a device copy of weights came from."""

    FILE = "file"
    HOST = "host"
    PEER = "peer"


class HostCopy(msgspec.Struct, frozen=True):
    """A file in shared memory for one stage's weights.

    `is_filled`: they lie there, in `size_bytes`; else the worker writes them, if they fit that.
    """

    path: str
    is_filled: bool
    size_bytes: int


class LoadStage(msgspec.Struct, frozen=True, tag=True):
    """Load `stage` of the diffusers folder `folder`, through the node's host copy if there is one.

    `peer` is what a `StageLent` said, if another device of the node holds the stage. `ids` are of
    the launch that asked for it, for lines of the log; none if no launch did.
    """

    stage: StageKey
    folder: str
    family: str
    host: HostCopy | None = None
    peer: bytes = b""
    ids: dict[str, str] = {}


class LendStage(msgspec.Struct, frozen=True, tag=True):
    """Say how another process can read the device copy of `stage`."""

    stage: StageKey


class ReclaimStage(msgspec.Struct, frozen=True, tag=True):
    """Count `segments`, that a `StageLent` told of, as closed: who was to read them has died."""

    segments: bytes


class StopLoad(msgspec.Struct, frozen=True, tag=True):
    """Stop loading `stage` between two chunks and free what has arrived; harmless if it is over."""

    stage: StageKey


class ForgetHostCopy(msgspec.Struct, frozen=True, tag=True):
    """Unmap a host copy: it was deleted."""

    path: str


class UnloadStage(msgspec.Struct, frozen=True, tag=True):
    """Free the weights of `stage`."""

    stage: StageKey


class Saving(msgspec.Struct, frozen=True):
    """How often a diffuse that goes on saves where it stands.

    After at least `every_steps` of the request's steps and `every_s` seconds since its begin or the
    last time: what a killed worker costs is whichever of both is more, and a step. So a diffuse that
    is shorter than either saves nothing.
    """

    every_steps: int
    every_s: float

    def is_due(self, steps: int, passed_s: float) -> bool:
        """Whether to save, `steps` and `passed_s` seconds after the last time."""
        return steps >= self.every_steps and passed_s >= self.every_s


class Seat(msgspec.Struct, frozen=True):
    """A device's place in a communication group; rank 0 leads.

    `group` names one incarnation: when a member dies, the same devices meet under a new name.
    """

    group: str
    rank: int
    size: int


class JoinGroup(msgspec.Struct, frozen=True, tag=True):
    """Meet the other members of a group in the background, as soon as this is heard."""

    seat: Seat


class LeaveGroup(msgspec.Struct, frozen=True, tag=True):
    """Forget a group; harmless if it is unknown."""

    group: str


class BreakGroup(msgspec.Struct, frozen=True, tag=True):
    """Stop waiting for the other members of a group; sent past the queue, to the beat's socket."""

    group: str


class RunStage(msgspec.Struct, frozen=True, tag=True):
    """Run a launch whose stage is loaded: its task and riders, which share everything.

    `launch` numbers the launches of the node: every member of a team gets them in rising order.
    `seat` is the device's place in its team; None if it works alone. `pause` if the launch is to
    pause where it begins. `follows` is the task whose output is the input, if both are of one
    launch of several stages: the order is refused if that made none.
    """

    tasks: tuple[StageTask, ...]
    launch: int
    seat: Seat | None = None
    pause: bool = False
    follows: TaskId | None = None

    @property
    def id(self) -> TaskId:
        """The name by which the launch is paused, cancelled and answered: its first task's."""
        return self.tasks[0].id


class PauseTask(msgspec.Struct, frozen=True, tag=True):
    """Stop the diffuse `task` at its next step boundary and save where it stands."""

    task: TaskId


class CancelTask(msgspec.Struct, frozen=True, tag=True):
    """Stop `task` at its next step boundary, or drop it if it has not begun.

    The others of its launch go on; the launch ends when all of them are cancelled.
    """

    task: TaskId


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Finish and exit."""


class WorkerReady(msgspec.Struct, frozen=True, tag=True):
    """The worker is up and found this much device memory."""

    memory_bytes: int


class LoaderReady(msgspec.Struct, frozen=True, tag=True):
    """The worker's loader hears orders; a worker is up when both have reported."""


class StageLoaded(msgspec.Struct, frozen=True, tag=True):
    """`stage` is resident; loading took `load_s` seconds.

    `filled_bytes` is what the host copy takes that the load has made; 0 if it made none.
    """

    stage: StageKey
    load_s: float
    source: LoadSource
    filled_bytes: int = 0


class StageLent(msgspec.Struct, frozen=True, tag=True):
    """How another process opens the device copy of `stage`; empty if it cannot."""

    stage: StageKey
    segments: bytes


class StageLoadStopped(msgspec.Struct, frozen=True, tag=True):
    """`stage` was told to stop and is not resident; see `StageLoaded` for `filled_bytes`."""

    stage: StageKey
    filled_bytes: int = 0


class StageUnloaded(msgspec.Struct, frozen=True, tag=True):
    """`stage` is no longer resident."""

    stage: StageKey


class StageLoadFailed(msgspec.Struct, frozen=True, tag=True):
    """`stage` could not be loaded; `retryable` if it was for want of memory."""

    stage: StageKey
    error: str
    retryable: bool


class LaunchBegan(msgspec.Struct, frozen=True, tag=True):
    """A worker takes up a launch: from now on it may be the reason for what happens to it."""

    task: TaskId


class StepDone(msgspec.Struct, frozen=True, tag=True):
    """Denoise step `step` (counted from 1) of `steps` is done."""

    task: TaskId
    step: int
    steps: int


class LatentSaved(msgspec.Struct, frozen=True, tag=True):
    """A task of `launch` goes on, and has saved where it stands after `step` of its request's steps."""

    launch: TaskId
    task: TaskId
    step: int
    latent: HandoffRef


class LatentShown(msgspec.Struct, frozen=True, tag=True):
    """The clean latent that `task` predicted at one of its steps: its preview number `index`."""

    task: TaskId
    index: int
    latent: HandoffRef


class StageReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker measured and made. Durations are from the worker's monotonic clock.

    `output` is set by encode and diffuse stages, `artifact` by decode stages. A diffuse that was
    paused says so: `output` then is its saved latent after `steps_done` steps of all. `steps_done`
    counts from the request's first step, whatever was done before a pause, and in the request's
    steps, whatever number of steps the sampler makes of them. `cancelled` tells of a task of a batch
    that was told to stop while the others went on: it has no output.
    """

    task: TaskId
    kind: StageKind
    receive_s: float
    run_s: float
    send_s: float
    peak_memory_bytes: int
    steps_done: int = 0
    paused: bool = False
    cancelled: bool = False
    output: HandoffRef | None = None
    artifact: Artifact | None = None


class LaunchDone(msgspec.Struct, frozen=True, tag=True):
    """The launch of `task` is done; one report per task. Only the leader's have outputs."""

    task: TaskId
    reports: tuple[StageReport, ...]


class TeamBroke(msgspec.Struct, frozen=True, tag=True):
    """The launch of `task` ended because another member of the team is gone."""

    task: TaskId
    error: str


class TaskFailed(msgspec.Struct, frozen=True, tag=True):
    """A launch raised in the worker; `retryable` if another attempt may succeed.

    `not_finite` tells that its result held NaN or infinite numbers.
    """

    task: TaskId
    error: str
    retryable: bool
    not_finite: bool = False


class TaskCancelled(msgspec.Struct, frozen=True, tag=True):
    """A task stopped because it was told to, after `steps_done` steps."""

    task: TaskId
    steps_done: int


ToLoader = LoadStage | StopLoad | LendStage | ReclaimStage | UnloadStage | ForgetHostCopy
ToWorker = JoinGroup | LeaveGroup | RunStage | PauseTask | CancelTask | Shutdown
FromWorker = (
    WorkerReady
    | LoaderReady
    | StageLoaded
    | StageLent
    | StageLoadStopped
    | StageUnloaded
    | StageLoadFailed
    | LaunchBegan
    | StepDone
    | LatentSaved
    | LatentShown
    | LaunchDone
    | TeamBroke
    | TaskFailed
    | TaskCancelled
)
