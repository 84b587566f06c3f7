"""From job records to the wire types of `/v1/jobs`. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gateway.jobs.state import TERMINAL, JobStatus
from gateway.schemas.jobs import (
    CandidateCost,
    Decision,
    Eta,
    JobList,
    Output,
    QueuePlace,
    Schedule,
    StageEntry,
)
from gateway.schemas.jobs import Job as WireJob
from gateway.translate import degraded_of
from gateway.translate_videos import error_of

if TYPE_CHECKING:
    from engine import StageTiming
    from engine.eta import Prediction
    from gateway.jobs.entry import Backlog
    from gateway.jobs.record import Job, StageDecision, StoredArtifact

Link = Callable[["StoredArtifact"], str]


def wire_job(
    job: Job,
    link: Link,
    *,
    backlog: Backlog | None = None,
    prediction: Prediction | None = None,
) -> WireJob:
    """Return what clients see of a job; `link` gives the address of an output."""
    request = job.request
    timeline = job.timeline or tuple(stage.timing for stage in job.kept)
    return WireJob(
        id=job.id,
        status=job.status.value,
        modality=request.media.modality.value,
        model=request.model,
        prompt=request.prompt,
        size=str(request.shape),
        n=request.n,
        steps=request.steps,
        degraded=degraded_of(request),
        progress=100 if job.status is JobStatus.COMPLETED else job.progress,
        attempts=job.attempts,
        cancel_requested=job.cancel_requested,
        created_at=request.arrival_s,
        started_at=job.started_s,
        finished_at=job.finished_s,
        deadline_at=request.deadline_s,
        expires_at=job.content_expires_s if job.status in TERMINAL else job.expires_at_s,
        request_id=job.request_id,
        queue=_place(job, backlog),
        eta=_eta(prediction),
        error=error_of(job),
        stages=tuple(_stage(timing) for timing in timeline),
        outputs=tuple(_output(artifact, link) for artifact in job.artifacts),
    )


def wire_list(jobs: Sequence[Job], link: Link, *, has_more: bool) -> JobList:
    """Return one page."""
    found = tuple(wire_job(job, link) for job in jobs)
    return JobList(
        data=found,
        first_id=found[0].id if found else None,
        last_id=found[-1].id if found else None,
        has_more=has_more,
    )


def wire_schedule(
    job: Job, *, backlog: Backlog | None = None, prediction: Prediction | None = None
) -> Schedule:
    """Return why a job runs as it does."""
    return Schedule(
        id=job.id,
        status=job.status.value,
        why=_why(job, backlog) + _why_degraded(job),
        deadline_at=job.request.deadline_s,
        predicted_s=job.predicted_s,
        work_s=job.work_s,
        degraded=degraded_of(job.request),
        queue=_place(job, backlog),
        eta=_eta(prediction),
        decisions=tuple(_decision(decision) for decision in job.schedule),
    )


def _why(job: Job, backlog: Backlog | None) -> str:
    match job.status:
        case JobStatus.QUEUED if backlog is not None:
            return (
                f"It waits to be leased by an engine: {backlog.ahead} jobs with an earlier deadline "
                f"are before it, {backlog.work_s:.1f} device-seconds of work with what runs."
            )
        case JobStatus.IN_PROGRESS:
            return (
                f"An engine holds it, attempt {job.attempts}; its stages are scheduled one by one."
            )
        case _:
            return f"It is {job.status.value}; these were the last decisions about its stages."


def _why_degraded(job: Job) -> str:
    how = job.request.degraded
    if how is None:
        return ""
    return (
        f" It was admitted with {how.used_steps} of the {how.wished_steps} denoise steps that it "
        f"wished, of which it allows {how.least_steps} at least: with all of them it was expected "
        f"to end {how.late_s:.1f} s after its deadline."
    )


def _place(job: Job, backlog: Backlog | None) -> QueuePlace | None:
    if backlog is None or job.status is not JobStatus.QUEUED:
        return None
    return QueuePlace(position=backlog.ahead + 1, work_s=backlog.work_s)


def _eta(prediction: Prediction | None) -> Eta | None:
    return None if prediction is None else Eta(prediction.earliest_s, prediction.latest_s)


def _stage(timing: StageTiming) -> StageEntry:
    return StageEntry(
        node=timing.node,
        stage=timing.stage.value,
        device=timing.device,
        attempt=timing.attempt,
        started_at=timing.started_s,
        queue_wait_s=timing.queue_wait_s,
        load_s=timing.load_s,
        run_s=timing.run_s,
    )


def _output(artifact: StoredArtifact, link: Link) -> Output:
    return Output(
        id=artifact.id,
        index=artifact.index,
        media_type=artifact.media_type,
        width_px=artifact.width_px,
        height_px=artifact.height_px,
        size_bytes=artifact.size_bytes,
        seed=str(artifact.seed),
        sha256=artifact.sha256,
        url=link(artifact),
    )


def _decision(decision: StageDecision) -> Decision:
    return Decision(
        node=decision.node,
        stage=decision.stage.value,
        as_of=decision.as_of_s,
        outcome="launched" if decision.launched else "waits",
        why=decision.why,
        devices=decision.devices,
        batch=decision.batch,
        expected_s=decision.expected_s,
        slack_s=decision.slack_s,
        candidates=tuple(
            CandidateCost(
                degree=c.degree, expected_s=c.expected_s, device_s=c.device_s, slack_s=c.slack_s
            )
            for c in decision.candidates
        ),
    )
