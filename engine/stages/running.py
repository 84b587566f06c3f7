"""Runs one order of a worker: inputs in, stage, outputs out, and what it took.

Knows no socket: what the controller says meanwhile comes through `Orders`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import structlog
import torch

from engine.errors import NotFiniteError
from engine.handoff import preview_of
from engine.messages import StageReport, TaskCancelled, TaskFailed
from engine.stages.base import CancelledAtStep, Stage, StageResult
from engine.stages.denoise import LATENTS
from engine.stages.stopwatch import Stopwatch
from engine.stages.transport import FileTransport
from engine.types import HandoffRef, StageKey, StageTask, TaskId

_CPU_OUT_OF_MEMORY = "DefaultCPUAllocator"
log = structlog.get_logger(__name__)


class Orders(Protocol):
    """What the controller tells a worker while a task runs, and what it is told."""

    def report_step(self, task: TaskId, step: int, steps: int) -> None:
        """Tell the controller of a denoise step."""
        ...

    def report_latent(self, task: TaskId, index: int, latent: HandoffRef) -> None:
        """Tell the controller of the clean latent that a step predicts: preview `index`."""
        ...

    def is_pausing(self, task: TaskId) -> bool:
        """Whether a task was told to pause, as far as was heard."""
        ...

    def stop_if_cancelled(self, task: TaskId, steps_done: int) -> None:
        """Hear what has arrived; raise `CancelledAtStep` if a task was told to stop."""
        ...


class TaskRunner:
    """Runs tasks on the stages that are loaded on one device."""

    def __init__(
        self,
        stages: Mapping[StageKey, Stage],
        transport: FileTransport,
        device: torch.device,
        orders: Orders,
    ) -> None:
        """Take the worker's loaded stages, which it goes on changing."""
        self._stages, self._transport = stages, transport
        self._device, self._orders = device, orders

    def run(self, task: StageTask) -> StageReport | TaskFailed | TaskCancelled:
        """Run a task and return what came of it; raises nothing."""
        try:
            self._orders.stop_if_cancelled(task.id, task.steps_done)
            return self._execute(task)
        except CancelledAtStep as stop:
            return TaskCancelled(task.id, stop.steps_done)
        except NotFiniteError as error:
            return TaskFailed(task.id, str(error), retryable=True, not_finite=True)
        except Exception as error:  # process boundary: reported, not swallowed
            log.exception("stage_run_failed", task=task.id)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            return TaskFailed(task.id, describe(error), retryable=_is_for_memory(error))

    def _execute(self, task: StageTask) -> StageReport:
        clock = Stopwatch(self._device)
        inputs = {k: v for ref in task.inputs for k, v in self._transport.get(ref).items()}
        snapshot = None if task.saved is None else self._transport.get_snapshot(task.saved.ref)
        receive_s = clock.lap()
        boundary = _TaskBoundary(self._orders, self._transport, task)
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


class _TaskBoundary:
    """The step boundaries of one task: where it reports, and hears what it was told meanwhile.

    Attributes:
        steps_done: of all the request's steps; samplers of higher order make more of them.
    """

    def __init__(self, orders: Orders, transport: FileTransport, task: StageTask) -> None:
        """Stand where the task begins."""
        self._orders, self._transport, self._task = orders, transport, task
        self.steps_done = task.steps_done

    @property
    def wants_pause(self) -> bool:
        """Whether the task was told to pause."""
        return self._orders.is_pausing(self._task.id)

    def show(self, index: int, latents: torch.Tensor) -> None:
        """Leave a predicted clean latent to be decoded as preview number `index`."""
        name = preview_of(self._task.id, index)
        latent = self._transport.put(self._task.node, name, {LATENTS: latents})
        self._orders.report_latent(self._task.id, index, latent)

    def passed(self, step: int, steps: int) -> None:
        """Report a step, then hear what the task was told."""
        self.steps_done = step * self._task.request.steps // steps
        self._orders.report_step(self._task.id, step, steps)
        self._orders.stop_if_cancelled(self._task.id, self.steps_done)


def _is_for_memory(error: Exception) -> bool:
    """Whether memory was wanting; torch's CPU allocator says so in words only."""
    wanting = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return wanting or (isinstance(error, RuntimeError) and _CPU_OUT_OF_MEMORY in str(error))


def describe(error: Exception) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {error}"
