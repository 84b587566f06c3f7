"""What happens in a simulation or a live engine, one frozen struct per fact, and their file.

The schema is public (docs/simulator.md): whoever distrusts the summary can audit the file with a
program of their own. Runs, loads and evictions are written when they end, so lines are ordered by
the time of writing, not by `start`. Times are seconds since the start: virtual in a simulation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from engine.types import DeviceId, ModelId, Purpose, RequestId, StageKind
from schedulers.errors import TraceError

_BUFFER_BYTES = 1 << 20


class RunOutcome(StrEnum):
    """How a run ended; the steps up to `step_to` are done, or saved on the way if it is `FAILED`."""

    DONE = "done"
    PAUSED = "paused"
    RESIZED = "resized"
    FAILED = "failed"


class ResidentStage(msgspec.Struct, frozen=True):
    """Weights that lie on a device when the simulation begins."""

    model: ModelId
    stage: StageKind
    bytes: int


class ClusterDevice(msgspec.Struct, frozen=True):
    """A device; `memory_bytes` is what weights and activations may take together."""

    id: DeviceId
    node: str
    memory_bytes: int
    stages: tuple[ResidentStage, ...] = ()


class ClusterEvent(msgspec.Struct, frozen=True, tag_field="kind", tag="cluster"):
    """The first line: the devices that are ready; those of a live engine come up later."""

    devices: tuple[ClusterDevice, ...]


class ArriveEvent(msgspec.Struct, frozen=True, tag_field="kind", tag="arrive", kw_only=True):
    """A request came in; `deadline` is on the same clock as `t`.

    `steps` are those that it does, see `DegradeEvent`.
    `encoded`: what its prompt encodes to was kept from another request, so it needs no encode.
    `resumed`: another engine did a part of it; what is missing here was done there.
    """

    t: float
    request: RequestId
    model: ModelId
    height: int
    width: int
    frames: int
    steps: int
    deadline: float
    tenant: str = "default"
    priority: int = 0
    encoded: bool = False
    resumed: bool = False


class DegradeEvent(msgspec.Struct, frozen=True, tag_field="kind", tag="degrade", kw_only=True):
    """A request that has just arrived does `steps` denoise steps instead of the `wished` ones.

    It allows `least`. With all of them it was expected to end `late_s` seconds after its deadline.
    """

    t: float
    request: RequestId
    wished: int
    least: int
    steps: int
    late_s: float


class RunEvent(msgspec.Struct, frozen=True, tag_field="kind", tag="run", kw_only=True):
    """A team executed a stage of one request or of a batch, without a change of team.

    A diffusion that is paused or changes its degree is several runs. `step_from` and `step_to`
    count denoise steps done before and after (0 for encode and decode); `activation_bytes` is
    what it takes on every device of the team. `purpose` is `main` unless the weights of the stage
    served something beside the request's way from encode to decode: a partial image, or a source
    picture that was made a latent.
    """

    start: float
    end: float
    requests: tuple[RequestId, ...]
    stage: StageKind
    devices: tuple[DeviceId, ...]
    degree: int
    step_from: int
    step_to: int
    activation_bytes: int
    outcome: RunOutcome = RunOutcome.DONE
    purpose: Purpose = Purpose.MAIN


class DecideEvent(msgspec.Struct, frozen=True, tag_field="kind", tag="decide", kw_only=True):
    """Why a stage of a request was launched on `devices`, or waits if there are none.

    Why it waits is told once, and again when it waits for another reason; numbers in a reason do
    not make it another one.
    """

    t: float
    request: RequestId
    stage: StageKind
    why: str
    devices: tuple[DeviceId, ...] = ()


class LoadEvent(msgspec.Struct, frozen=True, tag_field="kind", tag="load", kw_only=True):
    """Weights were brought to a device; the memory is taken from `start`, usable from `end`."""

    start: float
    end: float
    device: DeviceId
    model: ModelId
    stage: StageKind
    bytes: int


class EvictEvent(msgspec.Struct, frozen=True, tag_field="kind", tag="evict", kw_only=True):
    """Weights were dropped from a device; unusable from `start`, the memory is free at `end`."""

    start: float
    end: float
    device: DeviceId
    model: ModelId
    stage: StageKind
    bytes: int


Stages = Mapping[DeviceId, tuple[str, ...]]
"""What each device should hold, as `model/stage`."""


class PlaceEvent(msgspec.Struct, frozen=True, tag_field="kind", tag="place"):
    """The placement that an engine begins with; it is no switch."""

    t: float
    version: int
    stages: Stages
    why: str = ""


class SwitchEvent(msgspec.Struct, frozen=True, tag_field="kind", tag="switch"):
    """A new placement was adopted: metadata only, weights move later."""

    t: float
    version: int
    stages: Stages = msgspec.field(default_factory=dict)
    why: str = ""


class RejectEvent(msgspec.Struct, frozen=True, tag_field="kind", tag="reject"):
    """A request ended without an output."""

    t: float
    request: RequestId
    reason: str


class FinishEvent(msgspec.Struct, frozen=True, tag_field="kind", tag="finish"):
    """A request ended with its output."""

    t: float
    request: RequestId
    on_time: bool


class DeviceLostEvent(msgspec.Struct, frozen=True, tag_field="kind", tag="device_lost"):
    """A device failed: what ran on it failed and what lay on it is gone."""

    t: float
    device: DeviceId


class DeviceReadyEvent(msgspec.Struct, frozen=True, tag_field="kind", tag="device_ready"):
    """A device came back, empty; or it came for the first time and says its node and memory."""

    t: float
    device: DeviceId
    node: str = ""
    memory_bytes: int = 0


SimEvent = (
    ClusterEvent
    | ArriveEvent
    | DegradeEvent
    | RunEvent
    | LoadEvent
    | EvictEvent
    | PlaceEvent
    | SwitchEvent
    | DecideEvent
    | RejectEvent
    | FinishEvent
    | DeviceLostEvent
    | DeviceReadyEvent
)


def end_of(event: SimEvent) -> float:
    """Return when an event was over, in virtual seconds; the cluster's is 0."""
    match event:
        case ClusterEvent():
            return 0.0
        case RunEvent() | LoadEvent() | EvictEvent():
            return event.end
        case _:
            return event.t


class EventFile:
    """Writes events as they come, one JSON object a line; holds no more than a buffer."""

    def __init__(self, path: Path) -> None:
        """Open `path`, replacing what is there; raises OSError if that cannot be."""
        self._file = path.open("wb", buffering=_BUFFER_BYTES)
        self._encoder = msgspec.json.Encoder()
        self._line = bytearray()

    def write(self, event: SimEvent) -> None:
        """Append one line."""
        self._encoder.encode_into(event, self._line)
        self._line += b"\n"
        self._file.write(self._line)

    def flush(self) -> None:
        """Write out the buffer."""
        self._file.flush()

    def close(self) -> None:
        """Write out the buffer; idempotent."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_events(path: Path) -> Iterator[SimEvent]:
    """Yield the events of a file, line by line.

    Raises:
        TraceError: a line is no event; names file, line and what is wrong.
    """
    try:
        with path.open("rb") as lines:
            yield from _decode(path, lines)
    except OSError as error:
        raise TraceError(f"Cannot read the event file {path}: {error.strerror}.") from error


def _decode(path: Path, lines: Iterable[bytes]) -> Iterator[SimEvent]:
    decoder: msgspec.json.Decoder[SimEvent] = msgspec.json.Decoder(SimEvent)
    for number, line in enumerate(lines, start=1):
        try:
            yield decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise TraceError(f"{path}, line {number}: not an event: {error}.") from error
