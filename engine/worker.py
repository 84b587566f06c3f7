"""A worker process: loads, runs and unloads stages on one device, strictly in order.

This is its shell: the socket, the order of orders, the signs of life. What a task does is in
`engine.stages.running`. Started by an executor as `python -m engine.worker`, or forked by `engine.nursery`; torch begins here.
It knows no other worker and no policy. It ends when it is told to, or when its standard input
ends because the controller died.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import NoReturn

import msgspec
import structlog
import torch
import zmq

from engine.executors.slot import BEAT_SUFFIX
from engine.handoff import WINDOW_BYTES
from engine.handoff_client import client_beside
from engine.messages import (
    BreakGroup,
    CancelTask,
    FromWorker,
    JoinGroup,
    LatentSaved,
    LatentShown,
    LaunchBegan,
    LaunchDone,
    LeaveGroup,
    PauseTask,
    RunStage,
    Saving,
    Shutdown,
    StepDone,
    ToWorker,
    WorkerReady,
)
from engine.stages.groups import Groups
from engine.stages.loader_thread import LoaderThread
from engine.stages.peers import windows_of
from engine.stages.running import Ending, Said, TaskRunner
from engine.stages.shelf import StageShelf
from engine.stages.transport import FileTransport
from engine.types import HandoffRef, SavedLatent, StageTask, TaskId
from observability.logging import configure_logging

BEAT_INTERVAL_S = 3.0  # each wakes this process and the controller; idle ones should sleep
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
log = structlog.get_logger(__name__)


class Worker:
    """Serves one controller over one socket with one device."""

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        device: torch.device,
        transport: FileTransport,
        groups: Groups,
        shelf: StageShelf,
        *,
        saving: Saving | None = None,
    ) -> None:
        """Take the shelf of loaded stages, which the loader thread fills."""
        self._socket, self._device, self._shelf = socket, device, shelf
        self._groups = groups
        self._runner = TaskRunner(shelf.stages, transport, device, groups, self, saving=saving)
        self._inbox: deque[ToWorker] = deque()
        self._launched = 0
        self._current: tuple[StageTask, ...] = ()
        self._cancelled: set[TaskId] = set()
        self._pausing: set[TaskId] = set()
        self._decoder = msgspec.msgpack.Decoder(ToWorker)

    def serve(self) -> None:
        """Report for work, then obey until told to shut down."""
        self._send(WorkerReady(device_memory_bytes(self._device)))
        while not isinstance(message := self._next(), Shutdown):
            match message:
                case LeaveGroup(group):
                    self._groups.leave(group)
                case RunStage():
                    self._send(self._run(message))

    def _run(self, order: RunStage) -> FromWorker:
        """Run a launch; its number shows that all members of a team obey in the same order."""
        assert order.launch > self._launched, f"launch {order.launch} after {self._launched}"
        self._launched, self._current = order.launch, order.tasks
        self._send(LaunchBegan(order.id))
        if order.pause:
            self._pausing.add(order.id)
        with self._shelf.undisturbed():
            moves = self._shelf.moves
            ending = self._runner.run(order)
        if self._shelf.has_moved(since=moves):
            ending = without_peaks(ending)
        self._current = ()
        self._cancelled.difference_update(task.id for task in order.tasks)
        self._pausing.discard(order.id)
        return ending

    def _next(self) -> ToWorker:
        """Return the next order; cancellations and pauses that arrive meanwhile are only noted."""
        while not self._inbox:
            self._accept(self._socket.recv())
        return self._inbox.popleft()

    def _accept(self, payload: bytes) -> None:
        """Queue an order; what concerns the running launch, and meetings, come before their turn."""
        message = self._decoder.decode(payload)
        match message:
            case JoinGroup(seat):  # in the background: peers need not wait for what runs here
                self._groups.join(seat)
            case CancelTask(task) | PauseTask(task):
                if self._has(task):  # others are over: it came too late
                    noted = self._cancelled if isinstance(message, CancelTask) else self._pausing
                    noted.add(task)
            case _:
                self._inbox.append(message)

    def _has(self, task: TaskId) -> bool:
        """Whether a task runs or waits its turn here."""
        queued = (t for m in self._inbox if isinstance(m, RunStage) for t in m.tasks)
        return any(task == known.id for known in chain(self._current, queued))

    def _send(self, message: FromWorker) -> None:
        self._socket.send(msgspec.msgpack.encode(message))

    def report_step(self, launch: TaskId, step: int, steps: int) -> None:
        """Tell the controller of a denoise step."""
        self._send(StepDone(launch, step, steps))

    def report_saved(self, launch: TaskId, task: TaskId, saved: SavedLatent) -> None:
        """Tell the controller where a task of a launch could be taken up again."""
        self._send(LatentSaved(launch, task, saved.step, saved.ref))

    def report_latent(self, task: TaskId, index: int, latent: HandoffRef) -> None:
        """Tell the controller of a predicted clean latent."""
        self._send(LatentShown(task, index, latent))

    def hear(self, launch: TaskId, task: TaskId) -> Said:
        """Take in what has arrived, and return what it says of a launch, and of one task of it."""
        while self._socket.poll(0):
            self._accept(self._socket.recv())
        if task in self._cancelled:
            return Said.CANCEL
        return Said.PAUSE if launch in self._pausing else Said.NOTHING


def without_peaks(ending: Ending) -> Ending:
    """Return what came of a launch, without its peaks: weights that moved beside it are in them."""
    if not isinstance(ending, LaunchDone):
        return ending
    reports = (msgspec.structs.replace(one, peak_memory_bytes=0) for one in ending.reports)
    return LaunchDone(ending.task, tuple(reports))


def device_memory_bytes(device: torch.device) -> int:
    """Return a GPU's memory, or for a CPU device this machine's or this container's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.exists() else "max"
    return min(physical, int(limit)) if limit.isdecimal() else physical


def _exit_with_controller() -> NoReturn:
    os.read(0, 1)  # ends only when the controller closes the pipe or dies
    os._exit(0)


def _start(work: Callable[..., object], *arguments: object) -> None:
    """Start a thread without which this process is no use: it ends if the thread breaks."""

    def run() -> None:
        try:
            work(*arguments)
        except Exception:
            log.critical("worker_thread_broke", exc_info=True)
            os._exit(1)  # else it would beat on, say, and load nothing any more

    threading.Thread(target=run, daemon=True).start()


def _beat(endpoint: str, identity: str, groups: Groups) -> NoReturn:
    """Show every few seconds that this process lives, and hear what cannot wait, whatever it is doing."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, f"{identity}{BEAT_SUFFIX}".encode())
    socket.connect(endpoint)
    decoder = msgspec.msgpack.Decoder(BreakGroup)
    while True:
        socket.send(b"")
        if socket.poll(int(1000 * BEAT_INTERVAL_S)):
            groups.break_up(decoder.decode(socket.recv()).group)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the executor's arguments (by default the command line's) and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("endpoint", "identity", "device", "handoff-folder", "group-folder"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--save-every", nargs=2, type=float, metavar=("STEPS", "SECONDS"))
    args = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach whole groups; we obey stdin
        signal.signal(number, signal.SIG_IGN)
    configure_logging(os.environ.get("TRIDENT_LOG_FORMAT", "auto"))
    _start(_exit_with_controller)
    torch.set_num_threads(args.threads)
    device = torch.device("cpu" if args.device.startswith("cpu") else args.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    groups = Groups(Path(args.group_folder), device)
    _start(_beat, args.endpoint, args.identity, groups)
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, args.identity.encode())
    socket.setsockopt(zmq.LINGER, 1000)
    socket.connect(args.endpoint)
    shelf = StageShelf(device)
    loader = LoaderThread(args.endpoint, args.identity, shelf)
    _start(loader.load_all, args.threads)
    _start(loader.serve)
    folder = Path(args.handoff_folder)
    windows = windows_of(device, folder.with_name("windows"), WINDOW_BYTES)
    transport = FileTransport(folder, device, client_beside(folder), windows=windows)
    saving = Saving(int(args.save_every[0]), args.save_every[1]) if args.save_every else None
    try:
        Worker(socket, device, transport, groups, shelf, saving=saving).serve()
    except Exception:
        log.critical("worker_broke", exc_info=True)
        os._exit(1)  # at once: Python's own way out took eight seconds
    socket.close(linger=1000)
    os._exit(0)  # threads wait on sockets and on standard input; nothing is left to flush


if __name__ == "__main__":
    main()
