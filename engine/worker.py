"""A worker process: loads, runs and unloads stages on one device, strictly in order.

Started by an executor as `python -m engine.worker`; torch begins here. It knows no other worker
and no policy. It ends when it is told to, or when its standard input ends because the controller
died.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
from collections import deque
from pathlib import Path
from typing import NoReturn

import msgspec
import structlog
import torch
import zmq

from engine.executors.slot import BEAT_SUFFIX
from engine.messages import (
    CancelTask,
    FromWorker,
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
from engine.stages.base import CancelledAtStep, Stage, StageResult
from engine.stages.registry import load_stage
from engine.stages.transport import FileTransport
from engine.types import HandoffRef, StageKey, StageTask, TaskId
from observability.logging import configure_logging

BEAT_INTERVAL_S = 1.0
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
log = structlog.get_logger(__name__)


class Worker:
    """Serves one controller over one socket with one device."""

    def __init__(
        self, socket: zmq.Socket[bytes], device: torch.device, transport: FileTransport
    ) -> None:
        """Begin with no stage loaded."""
        self._socket, self._device, self._transport = socket, device, transport
        self._stages: dict[StageKey, Stage] = {}
        self._inbox: deque[ToWorker] = deque()
        self._current: TaskId | None = None
        self._cancelled: set[TaskId] = set()
        self._pausing: set[TaskId] = set()
        self._decoder = msgspec.msgpack.Decoder(ToWorker)

    def serve(self) -> None:
        """Report for work, then obey until told to shut down."""
        self._send(WorkerReady(device_memory_bytes(self._device)))
        while not isinstance(message := self._next(), Shutdown):
            match message:
                case LoadStage():
                    self._send(self._load(message))
                case UnloadStage(stage):
                    self._unload(stage)
                    self._send(StageUnloaded(stage))
                case RunStage(task, pause):
                    self._current = task.id
                    if pause:
                        self._pausing.add(task.id)
                    self._send(self._run(task))
                    self._current = None
                    self._cancelled.discard(task.id)
                    self._pausing.discard(task.id)

    def _next(self) -> ToWorker:
        """Return the next order; cancellations and pauses that arrive meanwhile are only noted."""
        while not self._inbox:
            self._accept(self._socket.recv())
        return self._inbox.popleft()

    def _accept(self, payload: bytes) -> None:
        message = self._decoder.decode(payload)
        if not isinstance(message, CancelTask | PauseTask):
            self._inbox.append(message)
        elif self._has(message.task):  # others are over: it came too late
            noted = self._cancelled if isinstance(message, CancelTask) else self._pausing
            noted.add(message.task)

    def _has(self, task: TaskId) -> bool:
        """Whether a task runs or waits its turn here."""
        queued = (m.task.id for m in self._inbox if isinstance(m, RunStage))
        return task == self._current or task in queued

    def _send(self, message: FromWorker) -> None:
        self._socket.send(msgspec.msgpack.encode(message))

    def _load(self, order: LoadStage) -> StageLoaded | StageLoadFailed:
        began = time.perf_counter()
        try:
            stage = load_stage(Path(order.folder), order.family, order.stage.kind, self._device)
        except Exception as error:  # process boundary: reported, not swallowed
            log.exception("stage_load_failed", stage=str(order.stage))
            return StageLoadFailed(order.stage, f"Cannot load {order.stage}: {_describe(error)}")
        self._stages[order.stage] = stage
        return StageLoaded(order.stage, time.perf_counter() - began)

    def _unload(self, stage: StageKey) -> None:
        self._stages.pop(stage, None)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _run(self, task: StageTask) -> StageReport | TaskFailed | TaskCancelled:
        try:
            self.stop_if_cancelled(task.id, task.steps_done)
            return self._execute(task)
        except CancelledAtStep as stop:
            return TaskCancelled(task.id, stop.steps_done)
        except torch.OutOfMemoryError as error:
            self._free_cache()
            return TaskFailed(task.id, _describe(error), retryable=True)
        except Exception as error:  # process boundary: reported, not swallowed
            log.exception("stage_run_failed", task=task.id)
            return TaskFailed(task.id, _describe(error), retryable=False)

    def _execute(self, task: StageTask) -> StageReport:
        clock = _Stopwatch(self._device)
        inputs = {k: v for ref in task.inputs for k, v in self._transport.get(ref).items()}
        snapshot = None if task.saved is None else self._transport.get_snapshot(task.saved.ref)
        receive_s = clock.lap()
        boundary = _TaskBoundary(self, task)
        result = self._stages[task.stage].run(task, inputs, boundary, snapshot)
        run_s = clock.lap()
        output = self._hand_off(task, result)
        return StageReport(
            task=task.id,
            kind=task.stage.kind,
            receive_s=receive_s,
            run_s=run_s,
            send_s=clock.lap(),
            peak_memory_bytes=clock.peak_memory_bytes(),
            steps_done=boundary.steps_done,
            paused=result.snapshot is not None,
            output=output,
            artifact=result.artifact,
        )

    def _hand_off(self, task: StageTask, result: StageResult) -> HandoffRef | None:
        if result.snapshot is not None:
            return self._transport.put_snapshot(task.node, task.id, result.snapshot)
        return self._transport.put(task.node, task.id, result.tensors) if result.tensors else None

    def report_step(self, task: TaskId, step: int, steps: int) -> None:
        """Tell the controller of a denoise step."""
        self._send(StepDone(task, step, steps))

    def is_pausing(self, task: TaskId) -> bool:
        """Whether a task was told to pause, as far as was heard."""
        return task in self._pausing

    def stop_if_cancelled(self, task: TaskId, steps_done: int) -> None:
        """Hear what has arrived; raise `CancelledAtStep` if a task was told to stop."""
        while self._socket.poll(0):
            self._accept(self._socket.recv())
        if task in self._cancelled:
            raise CancelledAtStep(steps_done)

    def _free_cache(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


class _TaskBoundary:
    """The step boundaries of one task: where it reports, and hears what it was told meanwhile.

    Attributes:
        steps_done: of all the request's steps; samplers of higher order make more of them.
    """

    def __init__(self, worker: Worker, task: StageTask) -> None:
        """Stand where the task begins."""
        self._worker, self._task = worker, task
        self.steps_done = task.steps_done

    @property
    def wants_pause(self) -> bool:
        """Whether the task was told to pause."""
        return self._worker.is_pausing(self._task.id)

    def passed(self, step: int, steps: int) -> None:
        """Report a step, then hear what the task was told."""
        self.steps_done = step * self._task.request.steps // steps
        self._worker.report_step(self._task.id, step, steps)
        self._worker.stop_if_cancelled(self._task.id, self.steps_done)


class _Stopwatch:
    """Laps of the monotonic clock; on CUDA each lap waits for the device's queued work."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._base_bytes = torch.cuda.memory_allocated(device)
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last lap."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        lap_s, self._last = now - self._last, now
        return lap_s

    def peak_memory_bytes(self) -> int:
        """Return the most activation bytes allocated at once; 0 where it cannot be measured."""
        if self._device.type != "cuda":
            return 0
        return torch.cuda.max_memory_allocated(self._device) - self._base_bytes


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


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


def _beat(endpoint: str, identity: str) -> NoReturn:
    """Show once a second that this process lives, whatever the stage is doing."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, f"{identity}{BEAT_SUFFIX}".encode())
    socket.connect(endpoint)
    while True:
        socket.send(b"")
        time.sleep(BEAT_INTERVAL_S)


def main() -> None:
    """Parse the executor's arguments and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("endpoint", "identity", "device", "handoff-folder"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach whole groups; we obey stdin
        signal.signal(number, signal.SIG_IGN)
    configure_logging(os.environ.get("TRIDENT_LOG_FORMAT", "auto"))
    threading.Thread(target=_exit_with_controller, daemon=True).start()
    threading.Thread(target=_beat, args=(args.endpoint, args.identity), daemon=True).start()
    torch.set_num_threads(args.threads)
    device = torch.device("cpu" if args.device.startswith("cpu") else args.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, args.identity.encode())
    socket.setsockopt(zmq.LINGER, 1000)
    socket.connect(args.endpoint)
    Worker(socket, device, FileTransport(Path(args.handoff_folder), device)).serve()
    socket.close(linger=1000)
    os._exit(0)  # threads wait on sockets and on standard input; nothing is left to flush


if __name__ == "__main__":
    main()
