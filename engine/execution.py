"""One stage execution as it is told to the outside: its span and its line in the timeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.types import Assignment, StageTask, StageTiming
from observability import semconv

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

    from engine.errors import EngineError
    from engine.messages import StageReport
    from engine.ports import Clock
    from observability.tracing import StageSpans


class Execution:
    """Opens a stage span at launch and closes it with the worker's own measurements."""

    def __init__(
        self,
        task: StageTask,
        assignment: Assignment,
        *,
        ids: tuple[int, int],
        spans: StageSpans,
        clock: Clock,
    ) -> None:
        """Open the span now; `ids` are the plan's id and the placement's version."""
        plan_id, placement_version = ids
        self._task, self._device = task, assignment.team[0]
        self._spans, self._clock = spans, clock
        self._started_s = clock.now()
        self._queue_wait_s = max(0.0, self._started_s - self._task.ready_s)
        self._load_s = 0.0
        self._span = spans.start(
            self._task.stage.kind.value,
            self._task.request.traceparent,
            self._started_s,
            {
                **self._identity(assignment),
                semconv.ATTR_PLAN_ID: plan_id,
                semconv.ATTR_PLACEMENT: placement_version,
                semconv.ATTR_QUEUE_WAIT_S: self._queue_wait_s,
            },
            beside=[t.request.traceparent for t in assignment.tasks if t.id != task.id],
        )

    def _identity(self, assignment: Assignment) -> dict[str, AttributeValue]:
        task = self._task
        return {
            semconv.ATTR_MODEL: task.stage.model,
            semconv.ATTR_STAGE: task.stage.kind.value,
            semconv.ATTR_SHAPE: str(task.request.shape),
            semconv.ATTR_STEPS: task.request.steps,
            semconv.ATTR_STEP_FROM: task.steps_done,
            semconv.ATTR_JOB_ID: task.request.id,
            semconv.ATTR_TENANT: task.request.tenant,
            semconv.ATTR_NODE: task.node,
            semconv.ATTR_ATTEMPT: task.attempt,
            semconv.ATTR_TEAM: list(assignment.team),
            semconv.ATTR_DEGREE: assignment.degree,
            semconv.ATTR_BATCH: len(assignment.tasks),
        }

    def loaded(self, load_s: float) -> None:
        """Note how long the stage's weights took to load; 0 if they were resident."""
        self._load_s = load_s

    def finished(self, report: StageReport) -> StageTiming:
        """Close the span with the worker's measurements and return the timeline's line."""
        output_bytes = report.output.size_bytes if report.output is not None else 0
        residency = semconv.RESIDENCY_LOAD if self._load_s else semconv.RESIDENCY_HIT
        self._spans.end(
            self._span,
            self._clock.now(),
            {
                semconv.ATTR_LOAD_S: self._load_s,
                semconv.ATTR_RUN_S: report.run_s,
                semconv.ATTR_HANDOFF_S: report.receive_s + report.send_s,
                semconv.ATTR_HANDOFF_BYTES: output_bytes,
                semconv.ATTR_PEAK_MEMORY: report.peak_memory_bytes,
                semconv.ATTR_RESIDENCY: residency,
                semconv.ATTR_STEPS_DONE: report.steps_done,
                semconv.ATTR_PAUSED: report.paused,
            },
        )
        return StageTiming(
            node=self._task.node,
            stage=self._task.stage.kind,
            device=self._device,
            attempt=self._task.attempt,
            started_s=self._started_s,
            queue_wait_s=self._queue_wait_s,
            load_s=self._load_s,
            run_s=report.run_s,
        )

    def failed(self, error: EngineError) -> None:
        """Close the span with an error status."""
        self._spans.fail(self._span, self._clock.now(), error.code, str(error))
