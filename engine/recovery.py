"""What follows from a launch that failed, and who is to blame for it.

A task that failed alone has one attempt less; tasks that failed together keep theirs and run
alone from then on, so that a poisonous one burns nobody else's. One that its worker had not begun
with when it died simply waits again; if its inputs went with a node, what made them runs again,
`MAX_LOSSES` times per output. A lost worker or numbers that are
not finite also leave a mark on the device (`quarantine`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import structlog

from engine.errors import (
    EngineError,
    HandoffLostError,
    NotFiniteError,
    StageFailedError,
    WorkerLostError,
)
from engine.types import DeviceId, RequestId, StageTask

if TYPE_CHECKING:
    from engine.cluster import Cluster
    from engine.embeddings import EmbeddingCache
    from engine.ports import Clock
    from engine.runs import RequestRun

MAX_ATTEMPTS = 3
MAX_LOSSES = 10
log = structlog.get_logger(__name__)


class Recovery:
    """Decides between another attempt and giving a request up.

    Args:
        give_up: told of requests that failed for good.
    """

    def __init__(
        self,
        cluster: Cluster,
        clock: Clock,
        embeddings: EmbeddingCache,
        give_up: Callable[[RequestRun, EngineError], None],
    ) -> None:
        """Know where marks are kept and who ends requests."""
        self._cluster, self._clock, self._give_up = cluster, clock, give_up
        self._embeddings = embeddings

    def failed(
        self,
        parts: Sequence[tuple[StageTask, RequestRun]],
        team: Sequence[DeviceId],
        error: EngineError,
    ) -> None:
        """Offer the tasks of a failed launch again, or give their requests up."""
        if isinstance(error, WorkerLostError) and not error.began:
            for task, run in parts:
                log.info("stage_not_begun", task=task.id, detail=str(error))
                run.requeue(task, self._clock.now())
            if isinstance(error, HandoffLostError):
                self._lose({run.request.id: run for _task, run in parts}.values(), error)
            return
        alone = len(parts) == 1
        wanted = [(task, run) for task, run in parts if not run.is_over]
        culprits = self._culprits(team, error)
        for task, run in parts:
            run.retry(task, self._clock.now(), failed_on=culprits or tuple(team), counted=alone)
        for task, run in wanted:
            log.warning("stage_failed", task=task.id, detail=str(error))
            self._mark(culprits, task.request.id)
            if alone:
                self._judge(task, run, error)

    def _lose(self, runs: Iterable[RequestRun], error: HandoffLostError) -> None:
        """Have what went with a node made again for its requests."""
        for ref in error.lost:
            self._embeddings.forget(ref)
        for run in runs:
            for ref in run.lose(error.lost):
                self._embeddings.release(ref)
            if run.losses > MAX_LOSSES * run.request.n and not run.is_over:
                self._give_up(run, error)

    def _culprits(self, team: Sequence[DeviceId], error: EngineError) -> tuple[DeviceId, ...]:
        """Return the devices of a team that may have caused a failure.

        One that died may be back by the time that its peers have noticed.
        """
        if isinstance(error, NotFiniteError):
            return tuple(team)
        if isinstance(error, WorkerLostError):
            return error.devices or tuple(d for d in team if d not in self._cluster.memories)
        return ()

    def _mark(self, culprits: Sequence[DeviceId], request: RequestId) -> None:
        for device in culprits:
            self._cluster.mark(device, request, self._clock.now())

    def _judge(self, task: StageTask, run: RequestRun, error: EngineError) -> None:
        retryable = not isinstance(error, StageFailedError) or error.retryable
        failures = run.mishaps.counted[task.node]
        if retryable and failures < MAX_ATTEMPTS:
            return
        self._cluster.quarantine.acquit(task.request.id)
        self._give_up(run, _summed_up(task, run, error) if failures > 1 else error)

    def succeeded(self, team: Sequence[DeviceId]) -> None:
        """Note that a launch ended well."""
        for device in team:
            self._cluster.quarantine.succeeded(device)


def _summed_up(task: StageTask, run: RequestRun, error: EngineError) -> EngineError:
    """Return an error of the same kind that tells of all attempts."""
    failures, where = run.mishaps.counted[task.node], ", ".join(run.mishaps.where(task.node))
    message = (
        f"Stage {task.stage} of request {task.request.id} failed {failures} times in a row, alone "
        f"each time (on {where}), and is given up. The last time: {error}"
    )
    if isinstance(error, StageFailedError):
        return StageFailedError(message, retryable=False)
    return WorkerLostError(message)
