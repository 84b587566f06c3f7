"""The default executor: one long-lived worker process per device, on this machine.

Workers are started by dotted name, so this process never imports torch. Messages are msgpack on
a ZMQ socket in a private folder; tensors lie in the hand-off folder. A worker that dies is
reported, its pending calls fail with `WorkerLostError`, and it is started again.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
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
    TeamBrokenError,
    WorkerLostError,
)
from engine.executors.forking import Forker, Starter
from engine.executors.groups import GroupTable
from engine.executors.launches import Launches
from engine.executors.loads import Loads
from engine.executors.mailbox import Mailbox
from engine.executors.slot import BEAT_SUFFIX, LOAD_SUFFIX, WorkerSettings, WorkerSlot, environment
from engine.handoff import HandoffStore, PrivateFolder, handoff_path, preview_of, saved_of
from engine.messages import (
    BreakGroup,
    CancelTask,
    FromWorker,
    LatentSaved,
    LatentShown,
    LaunchDone,
    LoaderReady,
    PauseTask,
    Saving,
    Shutdown,
    StageLent,
    StageLoaded,
    StageLoadFailed,
    StageLoadStopped,
    StageReport,
    StageUnloaded,
    StepDone,
    TaskCancelled,
    TaskFailed,
    TeamBroke,
    ToLoader,
    ToWorker,
    WorkerReady,
)
from engine.types import (
    Assignment,
    DeviceId,
    DeviceInfo,
    HandoffRef,
    NodeId,
    SavedLatent,
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
        handoff_bytes: what hand-offs may take in shared memory before they go to disk; None: an
            eighth of what is free there.
        saving: how often long diffuses save where they stand; None: never.
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
        handoff_bytes: int | None = None,
        threads: int | None = None,
        saving: Saving | None = None,
    ) -> None:
        """Prepare; no process starts before `start`."""
        self._specs = {spec.id: spec for spec in specs}
        self._memory_bytes, self._device_kind = memory_bytes, device_kind
        self._saves = saving is not None
        self._decoder = msgspec.msgpack.Decoder(FromWorker)
        self._listener: DeviceListener | None = None
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._folder = PrivateFolder()
        self._endpoint = f"ipc://{self._folder.path}/engine.sock"
        self._spill = PrivateFolder(Path(tempfile.gettempdir()))
        free_bytes = shutil.disk_usage(self._folder.path).free
        self._handoff_bytes = free_bytes // 8 if handoff_bytes is None else handoff_bytes
        self._handoffs = HandoffStore(
            self._folder.path / "handoff", self._handoff_bytes, self._spill.path
        )
        group_folder = self._folder.path / "groups"
        group_folder.mkdir(mode=0o700)
        settings = WorkerSettings(
            self._endpoint,
            self._handoffs.folder,
            group_folder,
            threads or max(1, (os.cpu_count() or 1) // devices),
            saving,
        )
        inherited = environment(settings.threads)
        forks = device_kind == "cpu"
        self._spawner = Forker(self._folder.path, inherited) if forks else Starter(inherited)
        names = [DeviceId(f"{device_kind}:{i}") for i in range(devices)]
        self._slots = {name: WorkerSlot(name, settings, self._spawner) for name in names}
        self._groups = GroupTable(self, names)
        self._launches = Launches(self, self._groups)
        self._loads = Loads(
            self._specs,
            names,
            self._folder.path,
            host_bytes,
            has_peers=device_kind == "cuda",
            ask=self._ask_loader,
            tell=self._tell_loader,
        )
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
        return await self._loads.load(device, stage)

    async def unload(self, device: DeviceId, stage: StageKey) -> None:
        """Free a stage's weights."""
        await self._loads.unload(device, stage)

    def _ask_loader(
        self, device: DeviceId, key: str, order: ToLoader
    ) -> asyncio.Future[FromWorker]:
        reply = self._expect(device, key)
        self._tell_loader(device, order)
        return reply

    def _tell_loader(self, device: DeviceId, order: ToLoader) -> None:
        self._post(device, LOAD_SUFFIX, order)

    async def run(self, assignment: Assignment) -> tuple[StageReport, ...]:
        """Run a launch on its team and keep what it leaves for the next stages."""
        leader = self._groups.in_order(assignment.team)[0]
        pause = self._pausing.pop(leader, None) == assignment.task.id
        if assignment.follows is not None:
            assignment = self._with_input(assignment, assignment.follows)
        try:
            reports = await self._launches.run(assignment, pause=pause)
        except (WorkerLostError, StageFailedError, RequestCancelledError):
            for task in assignment.tasks:
                self._discard(task)
            raise
        for report in reports:
            if report.output is not None:
                self._handoffs.adopt(report.output)
        return reports

    def _with_input(self, assignment: Assignment, made_by: TaskId) -> Assignment:
        """Say where the input of an order that is sent ahead will lie."""
        path = handoff_path(self._handoffs.folder, made_by)
        ref = HandoffRef(assignment.task.node, str(path), 0)
        task = msgspec.structs.replace(assignment.task, inputs=(ref,))
        return msgspec.structs.replace(assignment, task=task)

    def _discard(self, task: StageTask) -> None:
        """Delete what a failed task may have written and not told of."""
        self._handoffs.discard(task.id)
        for step in range(task.steps_done, task.request.steps if self._saves else 0):
            self._handoffs.discard(saved_of(task.id, step))
        for index in range(task.request.previews):
            self._handoffs.discard(preview_of(task.id, index))

    def pause(self, assignment: Assignment) -> None:
        """Tell the leader to stop at the next step boundary and to save where it stands.

        The other members follow it: what the leader hears, the team agrees on at every boundary.

        The launch may still wait for its weights; then its order will say so. Only the last such
        note per device can matter, as a device runs one launch at a time.
        """
        leader, task = self._groups.in_order(assignment.team)[0], assignment.task.id
        self._pausing[leader] = task
        self.send(leader, PauseTask(task))

    def cancel(self, assignment: Assignment) -> None:
        """Tell the leader to stop at the next step boundary; the other members follow it."""
        leader = self._groups.in_order(assignment.team)[0]
        self.send(leader, CancelTask(assignment.task.id))

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

    def is_up(self, device: DeviceId) -> bool:
        """Whether a process serves the device."""
        return self._slots[device].is_ready

    def call(self, device: DeviceId, key: str, message: ToWorker) -> asyncio.Future[FromWorker]:
        """Send an order to a live worker and return its reply to come."""
        reply = self._expect(device, key)
        self.send(device, message)
        return reply

    def _expect(self, device: DeviceId, key: str) -> asyncio.Future[FromWorker]:
        slot = self._slots[device]
        if not slot.is_ready:
            message_text = f"Device {device} has no live worker."
            raise WorkerLostError(message_text)
        reply = slot.mailbox.expect(key)
        slot.answered()  # the time to answer begins now
        return reply

    def send(self, device: DeviceId, message: ToWorker) -> None:
        """Send an order; a worker that is down misses it."""
        self._post(device, "", message)

    def interrupt(self, device: DeviceId, message: BreakGroup) -> None:
        """Send a word to the thread that beats, which hears it at once."""
        self._post(device, BEAT_SUFFIX, message)

    def kill(self, device: DeviceId) -> None:
        """End a worker that does not answer."""
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

    async def _receive(self) -> None:
        by_beat, by_load = BEAT_SUFFIX.encode(), LOAD_SUFFIX.encode()
        while True:
            identity, *payload = await self._socket.recv_multipart()
            name = identity.removesuffix(by_beat).removesuffix(by_load)
            slot = self._slot_of(name.decode(errors="replace"))
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
                slot.memory_bytes = memory_bytes
                self._welcome(slot)
            case LoaderReady():
                slot.loader_is_ready = True
                self._welcome(slot)
            case StepDone() | LatentSaved() | LatentShown():
                self._pass_on(message)
            case _:
                _answer(slot.mailbox, message)

    def _welcome(self, slot: WorkerSlot) -> None:
        """Put a worker to use once it hears orders on both of its sockets."""
        if slot.memory_bytes is not None and slot.loader_is_ready:
            slot.is_ready = True
            self._groups.came_up(slot.device)
            info = DeviceInfo(slot.device, NODE, self._share_of(slot.memory_bytes))
            self._tell().device_ready(info)

    def _pass_on(self, message: StepDone | LatentSaved | LatentShown) -> None:
        """Tell the core of a task that goes on."""
        match message:
            case StepDone(task, step, steps):
                self._tell().task_progressed(task, step, steps)
            case LatentSaved(launch, task, step, latent):
                self._handoffs.adopt(latent)
                self._tell().latent_saved(launch, task, SavedLatent(step, latent))
            case LatentShown(task, index, latent):
                self._handoffs.adopt(latent)
                self._tell().latent_shown(task, index, latent)

    def _share_of(self, found_bytes: int) -> int:
        """Return what a device may hold: CPU devices share what copies and hand-offs leave."""
        if self._memory_bytes is not None:
            return self._memory_bytes
        if self._device_kind == "cuda":
            return found_bytes
        elsewhere = self._loads.host.budget_bytes + self._handoff_bytes
        return max(0, found_bytes - elsewhere) // len(self._slots)

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
                self._groups.went_down(slot.device)
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
            self.send(slot.device, Shutdown())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await asyncio.gather(*(slot.stop() for slot in self._slots.values()))
        await self._spawner.close()
        self._context.destroy(linger=0)
        self._handoffs.close()
        self._folder.close()
        self._spill.close()


def _answer(mailbox: Mailbox, message: FromWorker) -> None:
    """Resolve the call that a message replies to."""
    match message:
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
        case StageLoadFailed(stage, error):
            mailbox.refuse(f"load {stage}", StageFailedError(error, retryable=False))
        case StageUnloaded(stage):
            mailbox.deliver(f"unload {stage}", message)
