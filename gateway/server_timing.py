"""The Server-Timing header of pictures, videos and jobs: where the time of a job went. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from engine.types import StageKind

if TYPE_CHECKING:
    from gateway.jobs.record import Job
    from gateway.schemas.jobs import Job as WireJob

HEADER = "server-timing"


class Timed(Protocol):
    """One execution of a stage, as the engine or the wire tells it."""

    @property
    def node(self) -> str:
        """Its node in the graph."""
        ...

    @property
    def stage(self) -> str:
        """Its kind."""
        ...

    @property
    def queue_wait_s(self) -> float:
        """From ready to launched."""
        ...

    @property
    def load_s(self) -> float:
        """Weights that it waited for."""
        ...

    @property
    def run_s(self) -> float:
        """What the worker measured."""
        ...


def server_timing(job: Job) -> str:
    """Return the header of a job's record."""
    return _header(job.request.arrival_s, job.started_s, job.finished_s, job.timeline)


def server_timing_of_wire(job: WireJob) -> str:
    """Return the same of a job as its owner sees it."""
    return _header(job.created_at, job.started_at, job.finished_at, job.stages)


def _header(
    arrival_s: float, started_s: float | None, finished_s: float | None, stages: Iterable[Timed]
) -> str:
    """Return a Server-Timing value in milliseconds.

    `queue` is time in the job table and in front of stages; the stages are load plus run. All are
    added up over outputs and attempts, so with n > 1 they can exceed `total`, which is wall time.
    """
    known = tuple(stages)
    in_table_s = max(0.0, (started_s or arrival_s) - arrival_s)
    parts = {"queue": in_table_s + sum(stage.queue_wait_s for stage in known)}
    for kind in StageKind:
        parts[kind.value] = sum(
            stage.load_s + stage.run_s
            for stage in known
            if stage.stage == kind and stage.node.startswith(kind.value)  # no previews, no source
        )
    parts["total"] = (finished_s or arrival_s) - arrival_s
    return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in parts.items())
