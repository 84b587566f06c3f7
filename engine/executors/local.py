"""The default executor: one long-lived worker process per device, on this machine.

Workers are started by dotted name, so this process never imports torch. Messages are msgpack on
a ZMQ socket in a private folder; tensors lie in the hand-off folder. A worker that dies is
reported, its pending calls fail with `WorkerLostError`, and it is started again.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import structlog
import zmq
import zmq.asyncio

from engine.errors import (
    NotFiniteError,
    RequestCancelledError,
    StageFailedError,
    WorkerLostError,
)
from engine.executors.slot import BEAT_SUFFIX, WorkerSettings, WorkerSlot
from engine.handoff import HandoffStore, PrivateFolder, preview_of
from engine.host_store import HostStore, booked_bytes
from engine.messages import (
    CancelTask,
    ForgetHostCopy,
    FromWorker,
    LatentShown,
    LoadStage,
    PauseTask,
    RunStage,
    Shutdown,
    StageLoaded,
    StageLoadFailed,
    StageReport,
    StageUnloaded,
    StepDone,
    TaskCancelled,
    TaskFailed,
    ToWorker,
    UnloadStage,
    WorkerReady,
)
from engine.types import (
    Assignment,
    DeviceId,
    DeviceInfo,
    HandoffRef,
    NodeId,
    StageKey,
    StageTask,
    TaskId,
)

if TYPE_CHECKING:
    from engine.pipelines import PipelineSpec
    from engine.ports import DeviceListener

NODE = "local"
_FIRST_RESTART_S, _LONGEST_RESTART_S = 0.1, 10.0
_LONG_LIFE_S = 30.0
_WATCH_S = 1.0
log = structlog.get_logger(__name__)


class LocalExecutor:
    """Starts, supervises and talks to the worker processes of one machine.

    Args:
        specs: the models whose stages may be loaded.
        devices: number of worker processes; on CUDA, worker i uses GPU i.
        memory_bytes: what each device may hold; None: a GPU's memory, or a CPU device's share.
        host_bytes: what host copies of weights may take together; None: what all models weigh, or
            half of the shared memory that is free if that is less.
        threads: CPU threads of each worker; None: an equal share of the cores.
    """

    def __init__(
        self,
        specs: Sequence[PipelineSpec],
        *,
        devices: int,
        device_kind: Literal["cpu", "cuda"] = "cpu",
        memory_bytes: int | None = None,
        host_bytes: int | None = None,
        threads: int | None = None,
    ) -> None:
        """Prepare; no process starts before `start`."""
        self._specs = {spec.id: spec for spec in specs}
        self._memory_bytes, self._device_kind = memory_bytes, device_kind
        self._decoder = msgspec.msgpack.Decoder(FromWorker)
        self._listener: DeviceListener | None = None
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._folder = PrivateFolder()
        self._endpoint = f"ipc://{self._folder.path}/engine.sock"
        self._handoffs = HandoffStore(self._folder.path / "handoff")
        self._host = HostStore(
            self._folder.path / "weights",
            _host_budget(self._folder.path, specs) if host_bytes is None else host_bytes,
            self._forget_host_copy,
        )
        settings = WorkerSettings(
            self._endpoint,
            self._handoffs.folder,
            threads or max(1, (os.cpu_count() or 1) // devices),
        )
        names = [DeviceId(f"{device_kind}:{i}") for i in range(devices)]
        self._slots = {name: WorkerSlot(name, settings) for name in names}
        self._pausing: dict[DeviceId, TaskId] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        """Ids of all devices, whether their workers are up or not."""
        return tuple(self._slots)

    async def start(self, listener: DeviceListener) -> None:
        """Bind the socket and start supervising one process per device."""
        self._listener = listener
        self._socket.bind(self._endpoint)
        self._guard(self._receive())
        self._guard(self._watch())
        for slot in self._slots.values():
            self._guard(self._supervise(slot))

    def _guard(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(self._notice_end)
        self._tasks.append(task)

    def _notice_end(self, task: asyncio.Task[None]) -> None:
        """Tell the core of a bug: an executor that lost a task of its own serves nobody."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("executor_crashed", exc_info=error)
            self._tell().executor_failed(repr(error))

    async def load(self, device: DeviceId, stage: StageKey) -> float:
        """Load a stage through the node's host copy; return the seconds the worker measured."""
        spec = self._specs[stage.model]
        async with self._host.borrow(stage, spec.weight_bytes[stage.kind]) as loan:
            message = LoadStage(stage, spec.folder, spec.family, loan.copy)
            reply = await self._call(device, f"load {stage}", message)
            assert isinstance(reply, StageLoaded)
            loan.filled_bytes = reply.filled_bytes
        return reply.load_s

    def _forget_host_copy(self, path: str) -> None:
        for slot in self._slots.values():
            self._send(slot, ForgetHostCopy(path))

    async def unload(self, device: DeviceId, stage: StageKey) -> None:
        """Free a stage's weights."""
        await self._call(device, f"unload {stage}", UnloadStage(stage))

    async def run(self, assignment: Assignment) -> tuple[StageReport, ...]:
        """Run a task; degree 1 and no batch, so there is one device and one report."""
        task, device = assignment.task, assignment.team[0]
        order = RunStage(task, pause=self._pausing.pop(device, None) == task.id)
        try:
            reply = await self._call(device, task.id, order)
        except (WorkerLostError, StageFailedError, RequestCancelledError):
            self._discard(task)
            raise
        assert isinstance(reply, StageReport)
        if reply.output is not None:
            self._handoffs.adopt(reply.output)
        return (reply,)

    def _discard(self, task: StageTask) -> None:
        """Delete what a failed task may have written and not told of."""
        self._handoffs.discard(task.id)
        for index in range(task.request.previews):
            self._handoffs.discard(preview_of(task.id, index))

    def pause(self, assignment: Assignment) -> None:
        """Tell the worker to stop at the next step boundary and to save where it stands.

        The launch may still wait for its weights; then its order will say so. Only the last such
        note per device can matter, as a device runs one launch at a time.
        """
        device, task = assignment.team[0], assignment.task.id
        self._pausing[device] = task
        self._send(self._slots[device], PauseTask(task))

    def cancel(self, assignment: Assignment) -> None:
        """Tell the worker to stop at the next step boundary."""
        for device in assignment.team:
            self._send(self._slots[device], CancelTask(assignment.task.id))

    def restore(self, task: TaskId, node: NodeId, content: bytes) -> HandoffRef:
        """Write a hand-off file of what another engine's stage left."""
        return self._handoffs.restore(task, node, content)

    def release(self, ref: HandoffRef) -> None:
        """Delete a hand-off file."""
        self._handoffs.release(ref)

    def process_ids(self) -> dict[DeviceId, int]:
        """Return the process id of every live worker, for operators and tests."""
        found = {device: slot.process_id for device, slot in self._slots.items()}
        return {device: pid for device, pid in found.items() if pid is not None}

    async def _call(self, device: DeviceId, key: str, message: ToWorker) -> FromWorker:
        slot = self._slots[device]
        if not slot.is_ready:
            message_text = f"Device {device} has no live worker."
            raise WorkerLostError(message_text)
        reply = slot.mailbox.expect(key)
        slot.answered()  # the time to answer begins now
        self._send(slot, message)
        return await reply

    def _send(self, slot: WorkerSlot, message: ToWorker) -> None:
        if slot.is_ready:  # ROUTER drops messages to unknown peers; a dead one is handled by exit
            payload = [slot.identity.encode(), msgspec.msgpack.encode(message)]
            self._socket.send_multipart(payload, flags=zmq.NOBLOCK)

    async def _receive(self) -> None:
        by_beat = BEAT_SUFFIX.encode()
        while True:
            identity, *payload = await self._socket.recv_multipart()
            slot = self._slot_of(identity.removesuffix(by_beat).decode(errors="replace"))
            if slot is None:
                continue  # a last word of a process that was replaced
            if identity.endswith(by_beat):
                slot.beat()
                continue
            try:
                message = self._decoder.decode(b"".join(payload))
            except msgspec.MsgspecError as error:
                log.error("worker_speaks_nonsense", device=slot.device, detail=str(error))  # noqa: TRY400 - the traceback is ours and says nothing
                slot.kill("it sent no message of ours")
            else:
                slot.answered()
                self._accept(slot, message)

    def _slot_of(self, identity: str) -> WorkerSlot | None:
        return next((slot for slot in self._slots.values() if slot.identity == identity), None)

    def _accept(self, slot: WorkerSlot, message: FromWorker) -> None:
        match message:
            case WorkerReady(memory_bytes):
                slot.is_ready = True
                info = DeviceInfo(slot.device, NODE, self._share_of(memory_bytes))
                self._tell().device_ready(info)
            case StepDone(task, step, steps):
                self._tell().task_progressed(task, step, steps)
            case LatentShown(task, index, latent):
                self._handoffs.adopt(latent)
                self._tell().latent_shown(task, index, latent)
            case StageReport(task=task):
                slot.mailbox.deliver(task, message)
            case TaskFailed(task, error, retryable, not_finite):
                failure = StageFailedError(error, retryable=retryable)
                slot.mailbox.refuse(task, NotFiniteError(error) if not_finite else failure)
            case TaskCancelled(task):
                error_text = f"Task {task} was cancelled."
                slot.mailbox.refuse(task, RequestCancelledError(error_text))
            case StageLoaded(stage):
                slot.mailbox.deliver(f"load {stage}", message)
            case StageLoadFailed(stage, error):
                slot.mailbox.refuse(f"load {stage}", StageFailedError(error, retryable=False))
            case StageUnloaded(stage):
                slot.mailbox.deliver(f"unload {stage}", message)

    def _share_of(self, found_bytes: int) -> int:
        """Return what a device may hold: CPU devices share equally what host copies leave."""
        if self._memory_bytes is not None:
            return self._memory_bytes
        if self._device_kind == "cuda":
            return found_bytes
        return max(0, found_bytes - self._host.budget_bytes) // len(self._slots)

    def _tell(self) -> DeviceListener:
        assert self._listener is not None  # messages arrive only after start
        return self._listener

    async def _supervise(self, slot: WorkerSlot) -> None:
        """Keep one worker process alive, with growing pauses while none lives long."""
        pause_s = _FIRST_RESTART_S
        while True:
            try:
                await slot.spawn()
            except OSError as error:
                log.error("worker_not_started", device=slot.device, detail=str(error))  # noqa: TRY400 - the machine refused, no bug
            else:
                reason = await slot.wait()
                log.warning("worker_exited", reason=reason, restart_in_s=pause_s)
                self._tell().device_lost(slot.device, reason)
            await asyncio.sleep(pause_s)
            lived_long = slot.lived_s > _LONG_LIFE_S
            pause_s = _FIRST_RESTART_S if lived_long else min(2 * pause_s, _LONGEST_RESTART_S)

    async def _watch(self) -> None:
        """Kill workers that hang; each is then restarted like one that died."""
        while True:
            slept_s = -time.monotonic()
            await asyncio.sleep(_WATCH_S)
            slept_s += time.monotonic()
            for slot in self._slots.values():
                if slept_s > 2 * _WATCH_S:  # this process was stopped, not the worker
                    slot.excuse_silence()
                elif (why := slot.why_hung()) is not None:
                    log.error("worker_hangs", device=slot.device, why=why)
                    slot.kill(why)

    async def close(self) -> None:
        """Stop the workers, politely then firmly, and delete what they left; idempotent."""
        for slot in self._slots.values():
            self._send(slot, Shutdown())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await asyncio.gather(*(slot.stop() for slot in self._slots.values()))
        self._context.destroy(linger=0)
        self._handoffs.close()
        self._folder.close()


def _host_budget(folder: Path, specs: Sequence[PipelineSpec]) -> int:
    weights = [size for spec in specs for size in spec.weight_bytes.values()]
    return min(shutil.disk_usage(folder).free // 2, sum(map(booked_bytes, weights)))
