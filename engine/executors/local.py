"""The default executor: one long-lived worker process per device, on this machine.

Workers are started by dotted name, so this process never imports torch. Messages are msgpack on
a ZMQ socket in a private folder (`lines`); tensors lie in the hand-off folder. A worker that dies
is reported, its pending calls fail with `WorkerLostError`, and it is started again (`supervising`).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import structlog

from engine.errors import (
    RequestCancelledError,
    StageFailedError,
    WorkerLostError,
)
from engine.executors.following import Following
from engine.executors.forking import Forker, Starter
from engine.executors.groups import GroupTable
from engine.executors.launches import Launches
from engine.executors.lines import Lines
from engine.executors.loads import Loads
from engine.executors.slot import WorkerSettings, WorkerSlot, environment
from engine.executors.supervising import Supervisor
from engine.handoff import HandoffStore, PrivateFolder, handoff_path, preview_of, saved_of
from engine.handoff_client import leave_token
from engine.messages import (
    CancelTask,
    FromWorker,
    LatentSaved,
    LatentShown,
    LoaderReady,
    PauseTask,
    Saving,
    Shutdown,
    StageReport,
    StepDone,
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
log = structlog.get_logger(__name__)


def node_of(device: DeviceId) -> str:
    """Return the node that the id of an executor's device names."""
    return device.rpartition("/")[0] or NODE


class LocalExecutor:
    """Starts, supervises and talks to the worker processes of one machine.

    Args:
        specs: the models whose stages may be loaded.
        devices: number of worker processes; on CUDA, worker i uses GPU i. With none it only keeps
            hand-offs.
        node: what the machine is called; ids of devices of another one than `local` begin with it.
        memory_bytes: what each device may hold; None: a GPU's memory, or a CPU device's share.
        host_bytes: what host copies of weights may take together; None: what all models weigh, or
            half of the shared memory that is free if that is less.
        handoff_bytes: what hand-offs may take in shared memory before they go to disk; None: an
            eighth of what is free there.
        saving: how often long diffuses save where they stand; None: never.
        threads: CPU threads of each worker; None: an equal share of the cores.
        widest_team: teams that are connected before they are first wanted are no larger; a connected
            worker wakes a hundred times a second, which costs it 0.15 % of a core.
        handoff_token: with which workers fetch hand-offs of other nodes; None: there are none.
    """

    def __init__(
        self,
        specs: Sequence[PipelineSpec],
        *,
        devices: int,
        node: str = NODE,
        device_kind: Literal["cpu", "cuda"] = "cpu",
        memory_bytes: int | None = None,
        host_bytes: int | None = None,
        handoff_bytes: int | None = None,
        threads: int | None = None,
        saving: Saving | None = None,
        widest_team: int = 8,
        handoff_token: str | None = None,
    ) -> None:
        """Prepare; no process starts before `start`."""
        self._specs, self._node = {spec.id: spec for spec in specs}, node
        self._memory_bytes, self._device_kind = memory_bytes, device_kind
        self._saves = saving is not None
        self._listener: DeviceListener | None = None
        self._folder = PrivateFolder()
        self._endpoint = f"ipc://{self._folder.path}/engine.sock"
        self._spill = PrivateFolder(Path(tempfile.gettempdir()))
        self._handoffs = self._open_handoffs(handoff_bytes, handoff_token)
        threads = threads or max(1, (os.cpu_count() or 1) // max(1, devices))
        settings = self._worker_settings(threads, saving)
        inherited = environment(threads)
        forks = device_kind == "cpu"
        self._spawner = Forker(self._folder.path, inherited) if forks else Starter(inherited)
        prefix = "" if node == NODE else f"{node}/"
        names = [DeviceId(f"{prefix}{device_kind}:{i}") for i in range(devices)]
        self._slots = {name: WorkerSlot(name, settings, self._spawner) for name in names}
        self._lines = Lines(self._endpoint, self._slots, self._accept)
        self._supervisor = Supervisor(self._slots.values(), self._went_down)
        self._groups = GroupTable(self._lines, names, widest_team)
        self._launches = Launches(self._lines, self._groups)
        self._loads = Loads(
            self._specs,
            names,
            self._folder.path,
            host_bytes,
            has_peers=device_kind == "cuda",
            ask=self._lines.call_loader,
            tell=self._lines.tell_loader,
        )
        self._pausing: dict[DeviceId, TaskId] = {}
        self._following = Following()
        self._tasks: list[asyncio.Task[None]] = []

    def _open_handoffs(self, limit_bytes: int | None, token: str | None) -> HandoffStore:
        free_bytes = shutil.disk_usage(self._folder.path).free
        self._handoff_bytes = free_bytes // 8 if limit_bytes is None else limit_bytes
        folder = self._folder.path / "handoff"
        handoffs = HandoffStore(folder, self._handoff_bytes, self._spill.path)
        if token is not None:
            leave_token(folder, token)
        return handoffs

    def _worker_settings(self, threads: int, saving: Saving | None) -> WorkerSettings:
        groups = self._folder.path / "groups"
        groups.mkdir(mode=0o700)
        return WorkerSettings(self._endpoint, self._handoffs.folder, groups, threads, saving)

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        """Ids of all devices, whether their workers are up or not."""
        return tuple(self._slots)

    @property
    def is_whole(self) -> bool:
        """Always: they are all of this process."""
        return True

    @property
    def handoffs(self) -> HandoffStore:
        """What lies on this node between stages."""
        return self._handoffs

    async def start(self, listener: DeviceListener) -> None:
        """Bind the socket and start supervising one process per device."""
        self._listener = listener
        self._lines.open()
        for work in (self._lines.receive(), *self._supervisor.work()):
            self._guard(work)

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

    async def run(self, assignment: Assignment) -> tuple[StageReport, ...]:
        """Run a launch on its team and keep what it leaves for the next stages."""
        with self._following.after(assignment.follows):
            return await self._run(assignment)

    async def _run(self, assignment: Assignment) -> tuple[StageReport, ...]:
        leader = self._groups.in_order(assignment.team)[0]
        pause = self._pausing.pop(leader, None) == assignment.task.id
        if assignment.follows is not None:
            assignment = self._with_input(assignment, assignment.follows)
        try:
            reports = await self._launches.run(assignment, pause=pause)
        except (WorkerLostError, StageFailedError, RequestCancelledError):
            for task in assignment.tasks:
                self._discard(task)
            await self._following.ended(assignment.task.id)
            raise
        for report in reports:
            if report.output is not None:
                self._handoffs.adopt(report.output)
        if reports[0].paused:
            await self._following.ended(assignment.task.id)
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
        self._lines.send(leader, PauseTask(task))

    def cancel(self, assignment: Assignment) -> None:
        """Tell the leader to stop at the next step boundary; the other members follow it."""
        for task in assignment.tasks:
            self.drop(assignment, task.id)

    def drop(self, assignment: Assignment, task: TaskId) -> None:
        """Tell the leader to go on without a task; the other members follow it."""
        self._lines.send(self._groups.in_order(assignment.team)[0], CancelTask(task))

    def restore(self, task: TaskId, node: NodeId, content: bytes) -> HandoffRef:
        """Write a hand-off file of what another engine's stage left."""
        return self._handoffs.restore(task, node, content)

    def release(self, ref: HandoffRef) -> None:
        """Delete a hand-off file."""
        self._handoffs.release(ref)

    def notices(self) -> tuple[str, ...]:
        """Return nothing: devices that are down are on their way back."""
        return ()

    def process_ids(self) -> dict[DeviceId, int]:
        """Return the process id of every live worker, for operators and tests."""
        found = {device: slot.process_id for device, slot in self._slots.items()}
        return {device: pid for device, pid in found.items() if pid is not None}

    def _accept(self, slot: WorkerSlot, message: FromWorker) -> None:
        """Take a word that is no reply: a worker that reports for work, or a task that goes on."""
        match message:
            case WorkerReady(memory_bytes):
                slot.memory_bytes = memory_bytes
                self._welcome(slot)
            case LoaderReady():
                slot.loader_is_ready = True
                self._welcome(slot)
            case StepDone(task, step, steps):
                self._tell().task_progressed(task, step, steps)
            case LatentSaved(launch, task, step, latent):
                self._handoffs.adopt(latent)
                self._tell().latent_saved(launch, task, SavedLatent(step, latent))
            case LatentShown(task, index, latent):
                self._handoffs.adopt(latent)
                self._tell().latent_shown(task, index, latent)

    def _welcome(self, slot: WorkerSlot) -> None:
        """Put a worker to use once it hears orders on both of its sockets."""
        if slot.memory_bytes is not None and slot.loader_is_ready:
            slot.is_ready = True
            self._groups.came_up(slot.device)
            info = DeviceInfo(slot.device, self._node, self._share_of(slot.memory_bytes))
            self._tell().device_ready(info)

    def _went_down(self, slot: WorkerSlot, reason: str) -> None:
        self._groups.went_down(slot.device)
        self._loads.lost(slot.device, reason)
        self._tell().device_lost(slot.device, reason)

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

    async def close(self) -> None:
        """Stop the workers, politely then firmly, and delete what they left; idempotent."""
        for slot in self._slots.values():
            self._lines.send(slot.device, Shutdown())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await asyncio.gather(*(slot.stop() for slot in self._slots.values()))
        await self._spawner.close()
        self._lines.close()
        self._handoffs.close()
        self._folder.close()
        self._spill.close()
