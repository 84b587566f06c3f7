"""The default executor: one long-lived worker process per device, on this machine.

Workers are started by dotted name, so this process never imports torch. Messages are msgpack on
a ZMQ socket in a private folder; tensors lie in the hand-off folder. A worker that dies is
reported, its pending calls fail with `WorkerLostError`, and it is started again.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import msgspec
import structlog
import zmq
import zmq.asyncio

from engine.errors import RequestCancelledError, StageFailedError, WorkerLostError
from engine.executors.mailbox import Mailbox
from engine.handoff import HandoffStore, private_folder
from engine.messages import (
    CancelTask,
    FromWorker,
    LoadStage,
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
from engine.types import Assignment, DeviceId, DeviceInfo, HandoffRef, StageKey

if TYPE_CHECKING:
    from engine.pipelines import PipelineSpec
    from engine.ports import DeviceListener

WORKER_MODULE = "engine.worker"
NODE = "local"
_FIRST_RESTART_S, _LONGEST_RESTART_S = 0.1, 10.0
_SHUTDOWN_S = 3.0
_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
}
log = structlog.get_logger(__name__)


class LocalExecutor:
    """Starts, supervises and talks to the worker processes of one machine.

    Args:
        specs: the models whose stages may be loaded.
        devices: number of worker processes; on CUDA, worker i uses GPU i.
        memory_bytes: what each device may hold; None: a GPU's memory, or a CPU device's share.
        threads: CPU threads of each worker; None: an equal share of the cores.
    """

    def __init__(
        self,
        specs: Sequence[PipelineSpec],
        *,
        devices: int,
        device_kind: Literal["cpu", "cuda"] = "cpu",
        memory_bytes: int | None = None,
        threads: int | None = None,
    ) -> None:
        """Prepare; no process starts before `start`."""
        self._specs = {spec.id: spec for spec in specs}
        self._slots = {
            f"{device_kind}:{i}": _Slot(DeviceId(f"{device_kind}:{i}")) for i in range(devices)
        }
        self._memory_bytes, self._device_kind = memory_bytes, device_kind
        self._threads = threads or max(1, (os.cpu_count() or 1) // devices)
        self._decoder = msgspec.msgpack.Decoder(FromWorker)
        self._listener: DeviceListener | None = None
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._folder = private_folder()
        self._endpoint = f"ipc://{self._folder}/engine.sock"
        self._handoffs = HandoffStore(self._folder / "handoff")
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        """Ids of all devices, whether their workers are up or not."""
        return tuple(slot.device for slot in self._slots.values())

    async def start(self, listener: DeviceListener) -> None:
        """Bind the socket and start supervising one process per device."""
        self._listener = listener
        self._socket.bind(self._endpoint)
        self._tasks = [asyncio.create_task(self._receive())]
        self._tasks += [asyncio.create_task(self._supervise(s)) for s in self._slots.values()]

    async def load(self, device: DeviceId, stage: StageKey) -> float:
        """Load a stage; return the seconds the worker measured."""
        spec = self._specs[stage.model]
        message = LoadStage(stage, spec.folder, spec.family)
        reply = await self._call(device, f"load {stage}", message)
        assert isinstance(reply, StageLoaded)
        return reply.load_s

    async def unload(self, device: DeviceId, stage: StageKey) -> None:
        """Free a stage's weights."""
        await self._call(device, f"unload {stage}", UnloadStage(stage))

    async def run(self, assignment: Assignment) -> StageReport:
        """Run a task; degree 1, so the team is one device."""
        task = assignment.task
        try:
            reply = await self._call(assignment.team[0], task.id, RunStage(task))
        except (WorkerLostError, StageFailedError, RequestCancelledError):
            self._handoffs.discard(task.id)
            raise
        assert isinstance(reply, StageReport)
        if reply.output is not None:
            self._handoffs.adopt(reply.output)
        return reply

    def cancel(self, assignment: Assignment) -> None:
        """Tell the worker to stop at the next step boundary."""
        for device in assignment.team:
            self._send(self._slots[device], CancelTask(assignment.task.id))

    def release(self, ref: HandoffRef) -> None:
        """Delete a hand-off file."""
        self._handoffs.release(ref)

    def process_ids(self) -> dict[DeviceId, int]:
        """Return the process id of every live worker, for operators and tests."""
        return {s.device: s.process.pid for s in self._slots.values() if s.process is not None}

    async def _call(self, device: DeviceId, key: str, message: ToWorker) -> FromWorker:
        slot = self._slots[device]
        if not slot.is_ready:
            message_text = f"Device {device} has no live worker."
            raise WorkerLostError(message_text)
        reply = slot.mailbox.expect(key)
        self._send(slot, message)
        return await reply

    def _send(self, slot: _Slot, message: ToWorker) -> None:
        if slot.is_ready:  # ROUTER drops messages to unknown peers; a dead one is handled by exit
            payload = [slot.identity, msgspec.msgpack.encode(message)]
            self._socket.send_multipart(payload, flags=zmq.NOBLOCK)

    async def _receive(self) -> None:
        while True:
            identity, payload = await self._socket.recv_multipart()
            slot = next((s for s in self._slots.values() if s.identity == identity), None)
            if slot is not None:  # otherwise a last word of a process that was replaced
                self._accept(slot, self._decoder.decode(payload))

    def _accept(self, slot: _Slot, message: FromWorker) -> None:
        match message:
            case WorkerReady(memory_bytes):
                slot.is_ready = True
                info = DeviceInfo(slot.device, NODE, self._share_of(memory_bytes))
                self._tell().device_ready(info)
            case StepDone(task, step, steps):
                self._tell().task_progressed(task, step, steps)
            case StageReport(task=task):
                slot.mailbox.deliver(task, message)
            case TaskFailed(task, error, retryable):
                slot.mailbox.refuse(task, StageFailedError(error, retryable=retryable))
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
        """Return what a device may hold: CPU devices share the machine's memory equally."""
        if self._memory_bytes is not None:
            return self._memory_bytes
        return found_bytes if self._device_kind == "cuda" else found_bytes // len(self._slots)

    def _tell(self) -> DeviceListener:
        assert self._listener is not None  # messages arrive only after start
        return self._listener

    async def _supervise(self, slot: _Slot) -> None:
        """Keep one worker process alive, with growing pauses while it dies before it is ready."""
        pause_s = _FIRST_RESTART_S
        while True:
            slot.process = await self._spawn(slot)
            code = await slot.process.wait()
            was_ready, slot.is_ready, slot.process = slot.is_ready, False, None
            reason = f"Worker of {slot.device} ended with code {code}."
            if was_ready:
                self._tell().device_lost(slot.device, reason)
            slot.mailbox.fail_all(WorkerLostError(reason))
            log.warning("worker_exited", device=slot.device, code=code, restart_in_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = _FIRST_RESTART_S if was_ready else min(2 * pause_s, _LONGEST_RESTART_S)

    async def _spawn(self, slot: _Slot) -> asyncio.subprocess.Process:
        slot.incarnation += 1
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", WORKER_MODULE),
            *("--endpoint", self._endpoint, "--identity", slot.identity.decode()),
            *("--device", slot.device, "--handoff-folder", str(self._handoffs.folder)),
            *("--threads", str(self._threads)),
            stdin=asyncio.subprocess.PIPE,  # never written: its end tells the worker that we died
            env={**os.environ, **_QUIET, "OMP_NUM_THREADS": str(self._threads)},
        )

    async def close(self) -> None:
        """Stop the workers, politely then firmly, and delete what they left; idempotent."""
        for slot in self._slots.values():
            self._send(slot, Shutdown())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await asyncio.gather(*(_stop(slot) for slot in self._slots.values()))
        self._context.destroy(linger=0)
        self._handoffs.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class _Slot:
    """One device's place: the process that serves it now and the calls that wait for it."""

    def __init__(self, device: DeviceId) -> None:
        self.device = device
        self.incarnation = 0
        self.is_ready = False
        self.process: asyncio.subprocess.Process | None = None
        self.mailbox = Mailbox()

    @property
    def identity(self) -> bytes:
        """Name on the socket; a new one per process, so that stale messages are recognised."""
        return f"{self.device}#{self.incarnation}".encode()


async def _stop(slot: _Slot) -> None:
    slot.is_ready = False
    slot.mailbox.fail_all(WorkerLostError(f"Worker of {slot.device} was stopped."))
    process, slot.process = slot.process, None
    if process is None or process.returncode is not None:
        return
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(_SHUTDOWN_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
