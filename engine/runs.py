"""The life of one request inside the engine: its graph's progress, outputs and outcome.

Knows nothing of devices or policies; the core drives it and the caller awaits `outcome`.
"""

from __future__ import annotations

import asyncio

from engine.errors import EngineError, RequestCancelledError
from engine.graph import GraphRun, NodeState, StageGraph, StageNode
from engine.messages import StageReport
from engine.types import (
    Artifact,
    Assignment,
    GenerationRequest,
    GenerationResult,
    HandoffRef,
    NodeId,
    StageKind,
    StageTask,
    StageTiming,
    TaskId,
)


class RequestRun:
    """One admitted request.

    Attributes:
        outcome: resolves to the result or an `EngineError`; set exactly once.
        running: assignments that a worker holds now, by task.
        steps_done, steps: denoise steps finished and in all per node, as the worker counts them.
    """

    def __init__(
        self, request: GenerationRequest, graph: StageGraph, sequence: int, now_s: float
    ) -> None:
        """Begin with the graph's roots ready at `now_s`."""
        self.request = request
        self.progress = GraphRun(graph)
        self.outcome: asyncio.Future[GenerationResult] = asyncio.get_running_loop().create_future()
        self.running: dict[TaskId, Assignment] = {}
        self.steps_done: dict[NodeId, int] = {}
        self.steps: dict[NodeId, int] = {}
        self._sequence = sequence
        self._ready_s = dict.fromkeys(graph.nodes, now_s)
        self._artifacts: dict[int, Artifact] = {}
        self._timeline: list[StageTiming] = []

    @property
    def is_over(self) -> bool:
        """Whether the outcome is known; stages may still be running down."""
        return self.outcome.done()

    def ready_tasks(self) -> list[StageTask]:
        """Return the tasks that could run now; none once the outcome is known."""
        return [] if self.is_over else [self._task(node) for node in self.progress.ready()]

    def _task(self, node: StageNode) -> StageTask:
        attempt = self.progress.attempts[node.id] + 1
        return StageTask(
            id=TaskId(f"{self.request.id}/{node.id}/{attempt}"),
            request=self.request,
            node=node.id,
            stage=node.stage,
            image_index=node.image_index,
            inputs=self.progress.inputs(node.id),
            sequence=self._sequence,
            attempt=attempt,
            ready_s=self._ready_s[node.id],
        )

    def begin(self, assignment: Assignment) -> None:
        """Note that a team works on a task."""
        self.progress.start(assignment.task.node)
        self.steps_done.pop(assignment.task.node, None)
        self.running[assignment.task.id] = assignment

    def expect_wanted(self) -> None:
        """Raise `RequestCancelledError` if the outcome is known, so that more work is wasted."""
        if self.is_over:
            message = f"Request {self.request.id} ended before its stage could start."
            raise RequestCancelledError(message)

    def note_step(self, task: TaskId, step: int, steps: int) -> None:
        """Note that a running task has finished denoise step `step` of `steps`."""
        if task in self.running:
            node = self.running[task].task.node
            self.steps_done[node], self.steps[node] = step, steps

    @property
    def share_done(self) -> float:
        """Share of all outputs' denoise steps that are done, 0 to 1; a retry may lower it."""
        nodes = self.progress.graph.nodes.values()
        shares = [self._share(node) for node in nodes if node.stage.kind is StageKind.DIFFUSE]
        return sum(shares) / len(shares) if shares else 0.0

    def _share(self, diffuse: StageNode) -> float:
        match self.progress.states[diffuse.id]:
            case NodeState.DONE:
                return 1.0
            case NodeState.RUNNING:
                return self.steps_done.get(diffuse.id, 0) / self.steps.get(diffuse.id, 1)
            case NodeState.PENDING:
                return 0.0

    def retry(self, task: StageTask, now_s: float) -> None:
        """Offer a failed task again."""
        del self.running[task.id]
        self.progress.retry(task.node)
        self._ready_s[task.node] = now_s

    def complete(
        self, task: StageTask, report: StageReport, timing: StageTiming, now_s: float
    ) -> tuple[HandoffRef, ...]:
        """Book a finished task; return hand-offs that are spent. Resolves the outcome if last."""
        del self.running[task.id]
        self._timeline.append(timing)
        spent = self.progress.complete(task.node, report.output)
        if report.artifact is not None:
            self._artifacts[task.image_index] = report.artifact
        for child in self.progress.graph.children[task.node]:
            self._ready_s[child] = now_s
        if self.progress.is_done and not self.is_over:
            self.outcome.set_result(self._result())
        return spent

    def _result(self) -> GenerationResult:
        ordered = tuple(self._artifacts[index] for index in sorted(self._artifacts))
        return GenerationResult(ordered, tuple(self._timeline))

    def fail(self, error: EngineError) -> None:
        """Resolve the outcome with an error, unless it is known already."""
        if not self.is_over:
            self.outcome.set_exception(error)

    def drained(self) -> bool:
        """Whether the request is over and no worker holds a task of it."""
        return self.is_over and not self.running

    def check_integrity(self) -> None:
        """Check the graph's progress against the running tasks."""
        self.progress.check_integrity()
        running = {assignment.task.node for assignment in self.running.values()}
        marked = {n for n, s in self.progress.states.items() if s is NodeState.RUNNING}
        if running != marked:
            message = f"Request {self.request.id}: nodes {marked} are marked, {running} run."
            raise EngineError(message)
