"""The controller's end of its workers' sockets: orders out, words in, a reply to whoever waits.

A worker has three sockets: for orders, for its loader and for its beat. All meet here in one ROUTER
on a file in the engine's private folder; a word says by its identity who sent it, and the identity
of a process that was replaced is nobody's any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import msgspec
import structlog
import zmq
import zmq.asyncio

from engine.errors import (
    NotFiniteError,
    RequestCancelledError,
    StageFailedError,
    TeamBrokenError,
    WorkerLostError,
)
from engine.executors.mailbox import Mailbox
from engine.executors.slot import BEAT_SUFFIX, LOAD_SUFFIX, WorkerSlot
from engine.messages import (
    BreakGroup,
    FromWorker,
    LaunchBegan,
    LaunchDone,
    RunStage,
    StageLent,
    StageLoaded,
    StageLoadFailed,
    StageLoadStopped,
    StageUnloaded,
    TaskCancelled,
    TaskFailed,
    TeamBroke,
    ToLoader,
    ToWorker,
)
from engine.types import DeviceId

log = structlog.get_logger(__name__)


class Lines:
    """Reaches the workers of one node; `receive` must run.

    Args:
        slots: whoever serves each device now; what is for one that is down is dropped.
        hear: told of every word that is no reply.
    """

    def __init__(
        self,
        endpoint: str,
        slots: Mapping[DeviceId, WorkerSlot],
        hear: Callable[[WorkerSlot, FromWorker], None],
    ) -> None:
        """Make the socket; nobody can connect before `open`."""
        self._endpoint, self._slots, self._hear = endpoint, slots, hear
        self._decoder = msgspec.msgpack.Decoder(FromWorker)
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)

    def open(self) -> None:
        """Let workers connect."""
        self._socket.bind(self._endpoint)

    def close(self) -> None:
        """Hear and say nothing more; idempotent."""
        self._context.destroy(linger=0)

    def is_up(self, device: DeviceId) -> bool:
        """Whether a process serves the device."""
        return self._slots[device].is_ready

    def call(self, device: DeviceId, key: str, message: ToWorker) -> asyncio.Future[FromWorker]:
        """Send an order to a live worker and return its reply to come."""
        reply = self._expect(device, key, queued=isinstance(message, RunStage))
        self.send(device, message)
        return reply

    def call_loader(
        self, device: DeviceId, key: str, order: ToLoader
    ) -> asyncio.Future[FromWorker]:
        """Send an order to a live worker's loader and return its reply to come."""
        reply = self._expect(device, key, socket=LOAD_SUFFIX)
        self.tell_loader(device, order)
        return reply

    def _expect(
        self, device: DeviceId, key: str, *, queued: bool = False, socket: str = ""
    ) -> asyncio.Future[FromWorker]:
        slot = self._slots[device]
        if not slot.is_ready:
            message = f"Device {device} has no live worker."
            raise WorkerLostError(message, began=False)
        if not slot.mailbox.is_waited_for_on(socket):
            slot.answered(socket)  # the time to answer begins now
        return slot.mailbox.expect(key, queued=queued, socket=socket)

    def send(self, device: DeviceId, message: ToWorker) -> None:
        """Send an order; a worker that is down misses it."""
        self._post(device, "", message)

    def tell_loader(self, device: DeviceId, order: ToLoader) -> None:
        """Send an order to a worker's loader."""
        self._post(device, LOAD_SUFFIX, order)

    def interrupt(self, device: DeviceId, message: BreakGroup) -> None:
        """Send a word to the thread that beats, which hears it at once."""
        self._post(device, BEAT_SUFFIX, message)

    def kill(self, device: DeviceId) -> None:
        """End a worker that went on without its team."""
        why = "it went on without its team"
        log.error("worker_killed", device=device, why=why)
        self._slots[device].kill(why)

    def _post(
        self, device: DeviceId, socket: str, message: ToWorker | ToLoader | BreakGroup
    ) -> None:
        slot = self._slots[device]
        if slot.is_ready:  # ROUTER drops messages to unknown peers; a dead one is handled by exit
            payload = [f"{slot.identity}{socket}".encode(), msgspec.msgpack.encode(message)]
            self._socket.send_multipart(payload, flags=zmq.NOBLOCK)

    async def receive(self) -> None:
        """Take every word to its slot, for as long as the executor lives."""
        by_beat, by_load = BEAT_SUFFIX.encode(), LOAD_SUFFIX.encode()
        while True:
            identity, *payload = await self._socket.recv_multipart()
            name = identity.removesuffix(by_beat).removesuffix(by_load)
            slot = self._slot_of(name.decode(errors="replace"))
            if slot is None:
                continue  # a last word of a process that was replaced
            if identity.endswith(by_beat):
                slot.beat()
            else:
                socket = LOAD_SUFFIX if identity.endswith(by_load) else ""
                self._take(slot, b"".join(payload), socket)

    def _slot_of(self, identity: str) -> WorkerSlot | None:
        return next((slot for slot in self._slots.values() if slot.identity == identity), None)

    def _take(self, slot: WorkerSlot, payload: bytes, socket: str) -> None:
        try:
            message = self._decoder.decode(payload)
        except msgspec.MsgspecError as error:
            log.error("worker_speaks_nonsense", device=slot.device, detail=str(error))  # noqa: TRY400 - the traceback is ours and says nothing
            slot.kill("it sent no message of ours")
            return
        slot.answered(socket)
        if not _answer(slot.mailbox, message):
            self._hear(slot, message)


def _answer(mailbox: Mailbox, message: FromWorker) -> bool:
    """Resolve the call that a message replies to; return whether it is a reply."""
    match message:
        case LaunchBegan(task):
            mailbox.began(task)
        case LaunchDone(task):
            mailbox.deliver(task, message)
        case TeamBroke(task, error):
            mailbox.refuse(task, TeamBrokenError(error))
        case TaskFailed(task, error, retryable, not_finite):
            failure = StageFailedError(error, retryable=retryable)
            mailbox.refuse(task, NotFiniteError(error) if not_finite else failure)
        case TaskCancelled(task):
            mailbox.refuse(task, RequestCancelledError(f"Task {task} was cancelled."))
        case StageLent(stage):
            mailbox.deliver(f"lend {stage}", message)
        case StageLoaded(stage) | StageLoadStopped(stage):
            mailbox.deliver(f"load {stage}", message)
        case StageLoadFailed(stage, error, retryable):
            mailbox.refuse(f"load {stage}", StageFailedError(error, retryable=retryable))
        case StageUnloaded(stage):
            mailbox.deliver(f"unload {stage}", message)
        case _:
            return False
    return True
