"""What the console is told: everything that happens in this process's engine, and how it stands.

Facts are the simulator's events, so the page shows a server and an event file alike. Whoever comes
later gets the last ones; memory is bounded by `HISTORY`, and by `BACKLOG` for a page that does not
read: it is sent away and may come again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Final

import msgspec

from engine.executors.local import node_of
from engine.types import DeviceId, RequestId
from gateway.errors import MissingError

if TYPE_CHECKING:
    from engine.types import ClusterView, RunningView, StageTask

Names = Callable[["StageTask"], tuple[RequestId, ...]]

HISTORY: Final = 40_000
BACKLOG: Final = 2_000
STATE_INTERVAL_S: Final = 1.0
_CLUSTER: Final = b'{"kind":"cluster"'


class BusyState(msgspec.Struct, frozen=True):
    """The launch that a device takes part in."""

    requests: tuple[RequestId, ...]
    model: str
    stage: str
    purpose: str
    devices: tuple[DeviceId, ...]
    since: float
    ends: float
    step: int
    steps: int


class DeviceState(msgspec.Struct, frozen=True):
    """A device now; stages are `model/kind`."""

    id: DeviceId
    node: str
    memory_bytes: int
    free_bytes: int
    resident: tuple[str, ...]
    desired: tuple[str, ...]
    busy: BusyState | None
    lost: bool


class WaitingState(msgspec.Struct, frozen=True):
    """A stage that waits for a team. Times are on the feed's clock."""

    request: RequestId
    model: str
    shape: str
    stage: str
    since: float
    deadline: float
    predicted_finish: float


class EngineState(msgspec.Struct, frozen=True):
    """How an engine stands at `t`."""

    t: float
    placement_version: int
    devices: tuple[DeviceState, ...]
    waiting: tuple[WaitingState, ...]
    reasons: tuple[str, ...]


class ConsoleFeed:
    """Takes facts as they come, and tells every page that listens."""

    def __init__(self) -> None:
        """Begin before anything happened, with nobody's engine."""
        self._state: Callable[[], EngineState | None] | None = None
        self._encoder = msgspec.json.Encoder()
        self._cluster: bytes | None = None
        self._history: deque[bytes] = deque(maxlen=HISTORY)
        self._listeners: set[asyncio.Queue[bytes | None]] = set()

    def follow(self, state: Callable[[], EngineState | None]) -> None:
        """Tell pages how the engine stands that `state` asks; None while it starts."""
        self._state = state

    def note(self, event: msgspec.Struct) -> None:
        """Remember a fact, an event of the public schema, and pass it on; never waits."""
        line = self._encoder.encode(event)
        if line.startswith(_CLUSTER):
            self._cluster = line
        else:
            self._history.append(line)
        for listener in list(self._listeners):
            self._tell(listener, _message(b"fact", line))

    def close(self) -> None:
        """Send every page away: a server that stops waits for its streams to end."""
        for listener in list(self._listeners):
            while not listener.empty():
                listener.get_nowait()
            listener.put_nowait(None)
        self._listeners.clear()

    def _tell(self, listener: asyncio.Queue[bytes | None], message: bytes) -> None:
        try:
            listener.put_nowait(message)
        except asyncio.QueueFull:
            self._listeners.discard(listener)
            listener.get_nowait()
            listener.put_nowait(None)

    def stream(self) -> AsyncIterator[bytes]:
        """Return server-sent events: `start`, the facts so far, then facts and states as they come.

        Raises:
            MissingError: this process has no engine.
        """
        if self._state is None:
            message = (
                "This process runs no engine. Open the console of a process that does: "
                "`trident serve` or `trident serve --role engine`."
            )
            raise MissingError(message)
        return self._messages(self._state)

    async def _messages(self, state: Callable[[], EngineState | None]) -> AsyncIterator[bytes]:
        listener: asyncio.Queue[bytes | None] = asyncio.Queue(BACKLOG)
        so_far = [line for line in (self._cluster, *self._history) if line is not None]
        self._listeners.add(listener)
        try:
            yield _message(b"start", b"{}")
            for line in so_far:
                yield _message(b"fact", line)
            while True:
                now = state()
                if now is not None:
                    yield _message(b"state", self._encoder.encode(now))
                async for message in _until(listener, STATE_INTERVAL_S):
                    if message is None:
                        return
                    yield message
        finally:
            self._listeners.discard(listener)


async def _until(
    listener: asyncio.Queue[bytes | None], seconds: float
) -> AsyncIterator[bytes | None]:
    """Yield what arrives in the next `seconds`."""
    end = asyncio.get_running_loop().time() + seconds
    while (left := end - asyncio.get_running_loop().time()) > 0:
        try:
            async with asyncio.timeout(left):
                message = await listener.get()
        except TimeoutError:
            return
        yield message


def _message(event: bytes, data: bytes) -> bytes:
    return b"event: " + event + b"\ndata: " + data + b"\n\n"


def state_of(
    view: ClusterView,
    waiting: Iterable[tuple[StageTask, float]],
    reasons: tuple[str, ...],
    *,
    origin_s: float,
    names: Names,
) -> EngineState:
    """Return an engine's state, its times counted from `origin_s` as its facts count them.

    Args:
        view: the cluster as policies see it.
        waiting: stages that wait for a team, and when their requests are expected to finish.
        reasons: why a request would not succeed now.
        origin_s: when the facts' clock began.
        names: how facts call the outputs that a task serves.
    """
    return EngineState(
        t=view.now_s - origin_s,
        placement_version=view.placement_version,
        devices=_devices_of(view, origin_s, names),
        waiting=tuple(
            WaitingState(
                names(task)[0],
                task.stage.model,
                str(task.request.shape),
                task.stage.kind.value,
                task.ready_s - origin_s,
                task.request.deadline_s - origin_s,
                finish_s - origin_s,
            )
            for task, finish_s in waiting
        ),
        reasons=reasons,
    )


def _devices_of(view: ClusterView, origin_s: float, names: Names) -> tuple[DeviceState, ...]:
    busy = {
        device: _busy_of(launch, origin_s, names)
        for launch in view.running
        for device in launch.assignment.team
    }
    live = tuple(
        DeviceState(
            device.info.id,
            device.info.node,
            device.capacity_bytes,
            device.free_bytes,
            tuple(str(stage) for stage in sorted(device.resident)),
            tuple(str(stage) for stage in sorted(device.desired)),
            busy.get(device.info.id),
            lost=False,
        )
        for device in view.devices
    )
    known = {device.id for device in live}
    lost = (device for device in view.configured if device not in known)
    return (*live, *(DeviceState(d, node_of(d), 0, 0, (), (), None, lost=True) for d in lost))


def _busy_of(launch: RunningView, origin_s: float, names: Names) -> BusyState:
    assignment = launch.assignment
    task = assignment.task
    return BusyState(
        tuple(name for task in assignment.tasks for name in names(task)),
        task.stage.model,
        task.stage.kind.value,
        task.purpose.value,
        assignment.team,
        launch.started_s - origin_s,
        launch.ends_s - origin_s,
        launch.step,
        task.request.steps if task.steps_left else 0,
    )
