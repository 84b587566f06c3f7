"""What a server and the nodes that lend it devices say to each other: msgspec structs on ZMQ over TCP.

A message is msgpack with a type tag, followed by frames of bytes if it says so: hand-offs that travel
with it. Never pickle. The server connects; a node serves one server at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from engine.errors import (
    EngineError,
    NotFiniteError,
    RequestCancelledError,
    StageFailedError,
    TeamBrokenError,
    WorkerLostError,
)
from engine.messages import Saving, StageReport
from engine.types import (
    Assignment,
    DeviceId,
    DeviceInfo,
    HandoffRef,
    ModelId,
    NodeId,
    StageKey,
    TaskId,
)

PROTOCOL = 1
LARGEST_BYTES = 1 << 30  # of a message; larger ones end the connection
MOST_WAITING = 10_000  # messages on one side of a connection
BEAT_S = 3.0
SILENCE_S = 15.0  # after which the other side is taken for gone
LONG_SLEEP_S = 2 * BEAT_S  # between two looks: then this process was stopped, not the other side


class Terms(msgspec.Struct, frozen=True):
    """What server and node must have in common, or their results would differ.

    `models` are the models that are served, with what their folders hold (`fingerprint.identity`);
    `versions` of the libraries that either side has installed.
    """

    device_kind: Literal["cpu", "cuda"]
    models: Mapping[ModelId, str]
    versions: Mapping[str, str]
    protocol: int = PROTOCOL


class Inspect(msgspec.Struct, frozen=True, tag=True):
    """Say whether you could serve me, and do no more."""

    terms: Terms


class Hello(msgspec.Struct, frozen=True, tag=True):
    """Serve me from now on: start your workers, empty.

    `name` is what the node is called here; `handoff_token` is what all nodes of this server show each
    other when they fetch hand-offs. `saving` and `widest_team`: see `LocalExecutor`.
    """

    terms: Terms
    name: str
    handoff_token: str
    saving: Saving | None
    widest_team: int


class Load(msgspec.Struct, frozen=True, tag=True):
    """Load a stage; `ids` are of the request that wants it, for the log."""

    call: int
    device: DeviceId
    stage: StageKey
    ids: Mapping[str, str] = {}


class Unload(msgspec.Struct, frozen=True, tag=True):
    """Free a stage's weights."""

    call: int
    device: DeviceId
    stage: StageKey


class Run(msgspec.Struct, frozen=True, tag=True):
    """Run a launch; the content of each hand-off of `carried` follows in a frame."""

    call: int
    assignment: Assignment
    carried: tuple[HandoffRef, ...] = ()


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Cancel a call; it is answered all the same."""

    call: int


class Pause(msgspec.Struct, frozen=True, tag=True):
    """See `Executor.pause`."""

    assignment: Assignment


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """See `Executor.cancel`."""

    assignment: Assignment


class Drop(msgspec.Struct, frozen=True, tag=True):
    """See `Executor.drop`."""

    assignment: Assignment
    task: TaskId


class Free(msgspec.Struct, frozen=True, tag=True):
    """Free a hand-off of yours."""

    ref: HandoffRef


class Beat(msgspec.Struct, frozen=True, tag=True):
    """I am here."""


class Bye(msgspec.Struct, frozen=True, tag=True):
    """I stop; all that was between us is over."""

    reason: str = ""


class Fits(msgspec.Struct, frozen=True, tag=True):
    """I could serve you."""


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """I serve you; my devices report one by one. Hand-offs are fetched from `handoff_port`."""

    devices: tuple[DeviceId, ...]
    handoff_port: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    """I do not serve you; `for_good`, unless somebody mends what is wrong."""

    reason: str
    for_good: bool


class Done(msgspec.Struct, frozen=True, tag=True):
    """A call succeeded; `load_s` is of loads.

    The content of each paused latent of `reports` follows in a frame; it lies here no more.
    """

    call: int
    reports: tuple[StageReport, ...] = ()
    load_s: float = 0.0


class Failed(msgspec.Struct, frozen=True, tag=True):
    """A call ended with an `EngineError`; see there."""

    call: int
    code: str
    message: str
    retryable: bool = False
    began: bool = True
    devices: tuple[DeviceId, ...] = ()


class Up(msgspec.Struct, frozen=True, tag=True):
    """See `DeviceListener.device_ready`."""

    info: DeviceInfo


class Down(msgspec.Struct, frozen=True, tag=True):
    """See `DeviceListener.device_lost`."""

    device: DeviceId
    reason: str


class Saved(msgspec.Struct, frozen=True, tag=True):
    """A diffuse goes on, and stood where the frame that follows says after `step`."""

    launch: TaskId
    task: TaskId
    node: NodeId
    step: int


class Progressed(msgspec.Struct, frozen=True, tag=True):
    """See `DeviceListener.task_progressed`."""

    task: TaskId
    step: int
    steps: int


class Shown(msgspec.Struct, frozen=True, tag=True):
    """See `DeviceListener.latent_shown`."""

    task: TaskId
    index: int
    latent: HandoffRef


Call = Load | Unload | Run
ToNode = Inspect | Hello | Call | Stop | Pause | Cancel | Drop | Free | Beat | Bye
FromNode = (
    Fits | Welcome | Refused | Done | Failed | Up | Down | Saved | Progressed | Shown | Beat | Bye
)


def told(call: int, error: EngineError) -> Failed:
    """Return an error as it travels."""
    if isinstance(error, StageFailedError):
        return Failed(call, error.code, str(error), retryable=error.retryable)
    if isinstance(error, WorkerLostError):
        return Failed(call, error.code, str(error), began=error.began, devices=error.devices)
    return Failed(call, error.code, str(error))


def heard(failed: Failed) -> EngineError:
    """Return the error that has travelled."""
    if failed.code == NotFiniteError.code:
        return NotFiniteError(failed.message)
    if failed.code == RequestCancelledError.code:
        return RequestCancelledError(failed.message)
    for kind in (WorkerLostError, TeamBrokenError):
        if failed.code == kind.code:
            return kind(failed.message, began=failed.began, devices=failed.devices)
    return StageFailedError(failed.message, retryable=failed.retryable)
