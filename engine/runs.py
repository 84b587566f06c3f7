"""The life of one request inside the engine: its graph's progress, outputs and outcome.

Knows nothing of devices or policies; the core drives it and the caller awaits `outcome`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from engine.errors import EngineError
from engine.graph import GraphRun, NodeState, StageGraph, StageNode
from engine.journal import Journal
from engine.messages import StageReport
from engine.mishaps import Mishaps
from engine.previews import Previews
from engine.sources import Files, packed
from engine.step_counts import StepCounts
from engine.types import (
    Artifact,
    Assignment,
    Decision,
    DeviceId,
    GenerationRequest,
    GenerationResult,
    HandoffRef,
    Held,
    NodeId,
    Preview,
    Purpose,
    SavedLatent,
    StageKey,
    StageKind,
    StageTask,
    StageTiming,
    TaskId,
)

Restore: TypeAlias = Callable[[TaskId, NodeId, bytes], HandoffRef]  # an executor's


class Along(NamedTuple):
    """What comes along with a request: its source's files, and who is told of its previews."""

    files: Files = MappingProxyType({})
    show: Callable[[Preview], None] | None = None


ALONE = Along()


class RequestRun:
    """One admitted request.

    Attributes:
        outcome: resolves to the result or an `EngineError`; set exactly once.
        running: assignments that a worker holds now, by task.
        mishaps: what has failed.
        losses: how often inputs of its stages went with a node.
        decided: the last word of the dispatcher per node: how it was launched, or why it waits.
    """

    def __init__(
        self,
        request: GenerationRequest,
        graph: StageGraph,
        sequence: int,
        now_s: float,
        along: Along = ALONE,
    ) -> None:
        """Begin with the graph's roots ready at `now_s`.

        A request with a source needs its files laid down before its first task is asked for.
        """
        self._files = along.files
        self._source: HandoffRef | None = None
        self.request = request
        self.previews = Previews(along.show)
        self.progress = GraphRun(graph)
        self.outcome: asyncio.Future[GenerationResult] = asyncio.get_running_loop().create_future()
        self.running: dict[TaskId, Assignment] = {}
        self._steps = StepCounts()
        self.decided: dict[NodeId, Decision] = {}
        self.mishaps = Mishaps(graph)
        self._sequence = sequence
        self._ready_s = dict.fromkeys(graph.nodes, now_s)
        self._ready: list[StageTask] | None = None
        self._saved: dict[NodeId, SavedLatent] = {}
        self._ran_on: dict[NodeId, tuple[DeviceId, ...]] = {}
        self._artifacts: dict[int, Artifact] = {}
        self._timeline: list[StageTiming] = []
        self._journal: Journal | None = None
        self._restore: Restore | None = None
        self.losses = 0

    def set_out(
        self, journal: Journal | None, restore: Restore, release: Callable[[HandoffRef], None]
    ) -> None:
        """Begin with what `journal` has kept and the source's files; `restore` makes hand-offs.

        If one cannot be made or a file is missing this raises, and releases those that were made.
        """
        self._restore = restore
        try:
            self._resume(journal, restore)
            self._lay_down(restore)
        except BaseException:
            for ref in self.abandon():
                release(ref)
            raise

    def _resume(self, journal: Journal | None, restore: Restore) -> None:
        if journal is None:
            return
        self._journal = journal
        graph = self.progress.graph
        kept = {stage.node: stage for stage in journal.finished if stage.node in graph.nodes}
        done = graph.resumable({n for n, s in kept.items() if s.content or s.artifact})
        needed = [n for n in done if any(child not in done for child in graph.children[n])]
        outputs = self.progress.outputs
        for node in needed:
            name, content = TaskId(f"{self.request.id}/{node}/kept"), kept[node].content or b""
            outputs[node] = restore(name, node, content)
        self.progress.restore(done, outputs)
        self._timeline.extend(stage.timing for stage in kept.values() if stage.node in done)
        for node in done:
            if node in kept and (artifact := kept[node].artifact) is not None:
                self._artifacts[artifact.index] = artifact
        if self.progress.is_done:
            self.outcome.set_result(self._result())

    def _lay_down(self, restore: Restore) -> None:
        """Make a hand-off of the files that the request's source names."""
        if self.request.source is not None and not self.is_over:
            name = TaskId(f"{self.request.id}/source")
            self._source = restore(name, NodeId("source"), packed(self.request.source, self._files))

    @property
    def is_over(self) -> bool:
        """Whether the outcome is known; stages may still be running down."""
        return self.outcome.done()

    def ready_tasks(self) -> list[StageTask]:
        """Return the tasks that could run now; none once the outcome is known."""
        if self.is_over:
            return []
        if self._ready is None:
            nodes = self.mishaps.allowed(self.progress.ready(), self.progress.states)
            self._ready = [self._task(node) for node in nodes]
        return [*self._ready, *self.previews.tasks()]

    def task(self, node: NodeId) -> StageTask:
        """Return the task of a ready node."""
        return self._task(self.progress.graph.nodes[node])

    def next_node(self, node: NodeId, stage: StageKey) -> NodeId | None:
        """Return the first node of a stage that waits for a node's output and for nothing else.

        None if the request's workers failed in that stage: such tasks are let run one by one.
        """
        graph = self.progress.graph
        if self.mishaps.is_suspect(stage.kind):
            return None
        return next(
            (
                child
                for child in graph.children[node]
                if graph.nodes[child].stage == stage
                and graph.parents[child] == (node,)
                and self.progress.states[child] is NodeState.PENDING
            ),
            None,
        )

    def foresee(self, node: NodeId) -> StageTask:
        """Return the task that a node will be once its parents are done, but for its inputs."""
        return self._task(self.progress.graph.nodes[node], inputs=())

    def is_done(self, node: NodeId) -> bool:
        """Whether a node has finished."""
        return self.progress.states[node] is NodeState.DONE

    def _task(self, node: StageNode, inputs: tuple[HandoffRef, ...] | None = None) -> StageTask:
        attempt = self.progress.attempts[node.id] + 1
        return StageTask(
            id=TaskId(f"{self.request.id}/{node.id}/{attempt}"),
            request=self.request,
            node=node.id,
            stage=node.stage,
            image_index=node.image_index,
            inputs=self._inputs(node) if inputs is None else inputs,
            sequence=self._sequence,
            attempt=attempt,
            ready_s=self._ready_s[node.id],
            came_from=self._nearest(node.id),
            saved=self._saved.get(node.id),
            alone=self.mishaps.has(node.id),
            failed_on=self.mishaps.where(node.id),
            purpose=node.purpose,
        )

    def _inputs(self, node: StageNode) -> tuple[HandoffRef, ...]:
        if node.purpose is Purpose.IMAGE_ENCODE:
            if self._source is None and self._restore is not None:
                self._lay_down(self._restore)  # its moments went with a node
            assert self._source is not None
            return (self._source,)
        return self.progress.inputs(node.id)

    def _nearest(self, node: NodeId) -> tuple[DeviceId, ...]:
        """Return the team that holds a node's inputs: its own if it was paused, or a parent's."""
        if node in self._saved:
            return self._ran_on.get(node, ())
        parents = self.progress.graph.parents[node]
        return self._ran_on.get(parents[0], ()) if parents else ()

    def hold(self, held: Held) -> None:
        """Note why a stage waits; nobody waits for a preview."""
        if held.task.purpose is not Purpose.PREVIEW:
            self.decided[held.task.node] = held

    def begin(self, task: StageTask, assignment: Assignment) -> None:
        """Note that a team works on a task."""
        self.running[task.id] = assignment
        if task.purpose is Purpose.PREVIEW:
            self.previews.begin(task)
            return
        self.progress.start(task.node)
        self._steps.begin(task.node)
        self.running[task.id] = self.decided[task.node] = assignment
        self._ran_on[task.node] = assignment.team
        self._ready = None

    def note_step(self, task: StageTask, step: int, steps: int) -> None:
        """Note that a running task has finished denoise step `step` of `steps`."""
        if task.id in self.running:
            self._steps.note(task.node, step, steps)

    @property
    def share_done(self) -> float:
        """Share of all outputs' denoise steps that are done, 0 to 1; a retry may lower it."""
        nodes = self.progress.graph.nodes.values()
        shares = [self._share(node) for node in nodes if node.stage.kind is StageKind.DIFFUSE]
        return sum(shares) / len(shares) if shares else 0.0

    def _share(self, diffuse: StageNode) -> float:
        saved = self._saved.get(diffuse.id)
        share_saved = 0.0 if saved is None else saved.step / self.request.steps
        return self._steps.share(diffuse.id, self.progress.states[diffuse.id], share_saved)

    def retry(
        self, task: StageTask, now_s: float, *, failed_on: tuple[DeviceId, ...], counted: bool
    ) -> None:
        """Offer a failed task again, from its saved latent if it has one.

        What failed together with others is not `counted`, but runs alone from now on.
        """
        self.mishaps.add(task, failed_on, counted=counted)
        self._offer_again(task, now_s)

    def requeue(self, task: StageTask, now_s: float) -> None:
        """Offer a task again that no worker has begun with."""
        self._offer_again(task, now_s)

    def lose(self, lost: Container[HandoffRef]) -> tuple[HandoffRef, ...]:
        """Have made again what is needed of hand-offs that went with their node; return them."""
        self.losses += 1
        refs = self.progress.lose(lost)
        for node in [node for node, saved in self._saved.items() if saved.ref in lost]:
            refs += self._drop_saved(node)
        self._ready = None
        return refs

    def drop_preview(self, task: StageTask) -> tuple[HandoffRef, ...]:
        """Give up a preview that failed; return its latent."""
        del self.running[task.id]
        return task.inputs

    def suspend(
        self, task: StageTask, report: StageReport, timing: StageTiming, now_s: float
    ) -> tuple[HandoffRef, ...]:
        """Offer a paused diffuse again from its saved latent; return the latent it replaces."""
        assert report.output is not None  # a paused report carries the latent
        self._timeline.append(timing)
        spent = self.keep(task, SavedLatent(report.steps_done, report.output))
        self._offer_again(task, now_s)
        return spent

    def keep(self, task: StageTask, saved: SavedLatent) -> tuple[HandoffRef, ...]:
        """Let a diffuse start from `saved` next time; return the latent that this replaces."""
        spent = self._drop_saved(task.node)
        self._saved[task.node] = saved
        self.mishaps.came_further(task.node)
        return spent

    def skip(self, node: NodeId, output: HandoffRef) -> None:
        """Take a ready node as done, with what an equal one has made before."""
        self.progress.start(node)
        self.progress.complete(node, output)
        self._ready = None

    def go_on_from(self, node: NodeId, saved: SavedLatent) -> None:
        """Let a diffuse that has not begun here go on from a latent of an earlier life."""
        self._saved[node] = saved
        self._ready = None

    @property
    def saved(self) -> Mapping[NodeId, SavedLatent]:
        """The latest saved latent of every diffuse that has one and is not done."""
        return self._saved

    def _offer_again(self, task: StageTask, now_s: float) -> None:
        del self.running[task.id]
        self.progress.retry(task.node)
        self._ready_s[task.node] = now_s
        self._ready = None

    def _drop_saved(self, node: NodeId) -> tuple[HandoffRef, ...]:
        saved = self._saved.pop(node, None)
        return () if saved is None else (saved.ref,)

    def abandon(self) -> tuple[HandoffRef, ...]:
        """Give up: return every hand-off and latent that is still alive, and hold none."""
        latents = tuple(saved.ref for saved in self._saved.values())
        self._saved.clear()
        living = (*self.progress.abandon(), *latents)
        return (*living, *self.previews.drop(), *self._drop_source())

    def _drop_source(self) -> tuple[HandoffRef, ...]:
        source, self._source = self._source, None
        return () if source is None else (source,)

    def complete(
        self, task: StageTask, report: StageReport, timing: StageTiming, now_s: float
    ) -> tuple[HandoffRef, ...]:
        """Book a finished task; return hand-offs that are spent. Resolves the outcome if last."""
        del self.running[task.id]
        self.mishaps.succeeded(task.stage.kind)
        self._timeline.append(timing)
        if task.purpose is Purpose.PREVIEW:
            self.previews.finish(task, report)
            return task.inputs
        spent = (*self._drop_saved(task.node), *self.progress.complete(task.node, report.output))
        if task.stage.kind is StageKind.DIFFUSE:
            spent += self.previews.drop(task.image_index)
        if task.purpose is Purpose.IMAGE_ENCODE:
            spent += self._drop_source()
        self._ready = None
        if report.artifact is not None:
            self._artifacts[task.image_index] = report.artifact
        for child in self.progress.graph.children[task.node]:
            self._ready_s[child] = now_s
        if self.progress.is_done and not self.is_over:
            self.outcome.set_result(self._result())
        if self._journal is not None:
            self._journal.stage_finished(timing, report.output, report.artifact)
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
        running = {
            task.node
            for assignment in self.running.values()
            for task in assignment.tasks
            if task.request.id == self.request.id and task.purpose is not Purpose.PREVIEW
        }
        marked = {n for n, s in self.progress.states.items() if s is NodeState.RUNNING}
        if running != marked:
            message = f"Request {self.request.id}: nodes {marked} are marked, {running} run."
            raise EngineError(message)
