"""The diffuse stage: the denoise loop, step by step, so that every step is a place to stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog
import torch

from engine.previews import preview_steps
from engine.stages.base import (
    CancelledAtStep,
    FamilyCode,
    Job,
    Snapshot,
    StageResult,
    Trajectory,
)
from engine.stages.batching import alike_together
from engine.stages.clean import clean_latents
from engine.stages.finite import expect_finite
from engine.stages.saving import UnsavableStateError, restore, save
from engine.stages.team import Team

LATENTS = "latents"
log = structlog.get_logger(__name__)


class Denoise:
    """Denoiser and scheduler of one model."""

    def __init__(self, pipe: Any, code: FamilyCode) -> None:
        """Take the loaded components and the family's way to use them."""
        self._pipe, self._code = pipe, code

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job], team: Team) -> list[StageResult]:
        """Denoise outputs to their end, or to the boundary where they are to pause.

        Jobs that are alike share every call of the denoiser, which may change their last bits; on a
        team they run one by one.

        Raises:
            CancelledAtStep: all of them were.
        """
        stops = list[CancelledAtStep]()

        def denoise(alike: Sequence[Job]) -> list[StageResult]:
            return self._denoise(alike, team, stops)

        if team.size > 1:
            results = [result for job in jobs for result in denoise([job])]
        else:
            results = alike_together(jobs, _likeness, denoise)
        if len(stops) == len(jobs):
            raise stops[0]
        return results

    def _denoise(
        self, jobs: Sequence[Job], team: Team, stops: list[CancelledAtStep]
    ) -> list[StageResult]:
        """Denoise outputs side by side; who is done or cancelled (`stops`) leaves the others alone."""
        descents = [Descent(job, self._begin(job, team)) for job in jobs]
        while going := [descent for descent in descents if descent.may_go_on()]:
            evaluate_together([descent.trajectory for descent in going])
            for descent in going:
                descent.passed_step()
        stops += [descent.stop for descent in descents if descent.stop is not None]
        return [descent.result() for descent in descents]

    def _begin(self, job: Job, team: Team) -> Trajectory:
        request = job.task.request
        seed = request.seed + job.task.image_index
        trajectory = self._code.begin(self._pipe, request, seed, job.inputs, team)
        if job.snapshot is not None:
            restore(trajectory, job.snapshot)
        return trajectory


class Descent:
    """One output on its way from noise.

    Attributes:
        stop: what told it to stop; None if it may go on or has ended.
    """

    def __init__(self, job: Job, trajectory: Trajectory) -> None:
        """Stand where the trajectory stands."""
        self.trajectory, self._boundary = trajectory, job.boundary
        self._shown_at = preview_steps(job.task.request.previews, trajectory.steps)
        self._may_save = True
        self._paused: Snapshot | None = None
        self.stop: CancelledAtStep | None = None

    def may_go_on(self) -> bool:
        """Save if that is wanted, and say whether there is another step to do.

        A pause that comes before the first step takes effect there; one after the last, never.
        """
        trajectory, boundary = self.trajectory, self._boundary
        if self.stop is not None or trajectory.step >= trajectory.steps:
            return False
        if self._may_save and (boundary.wants_pause or boundary.wants_save):
            saved = _try_save(trajectory)
            self._may_save = saved is not None
            if saved is not None and boundary.wants_pause:
                self._paused = saved
            elif saved is not None:
                boundary.keep(saved)
        return self._paused is None

    def passed_step(self) -> None:
        """Show, report and hear, after a step."""
        trajectory, shown_at = self.trajectory, self._shown_at
        if trajectory.step in shown_at and (clean := clean_latents(trajectory)) is not None:
            self._boundary.show(shown_at.index(trajectory.step), clean)
        try:
            self._boundary.passed(trajectory.step, trajectory.steps)
        except CancelledAtStep as stop:
            self.stop = stop

    def result(self) -> StageResult:
        """Return what came of it."""
        if self.stop is not None:
            return StageResult({}, cancelled=True)
        if self._paused is not None:
            return StageResult({}, snapshot=self._paused)
        _expect_finite(self.trajectory)
        return StageResult({LATENTS: self.trajectory.latents})


def evaluate_together(trajectories: Sequence[Trajectory]) -> None:
    """Do one denoise step of each, with one call of the denoiser.

    They may stand at different steps: every row has its own timestep, every request its sampler.
    """
    if len(trajectories) == 1:
        trajectories[0].advance()
        return
    calls = [trajectory.ask() for trajectory in trajectories]
    model, names, shared = calls[0].model, calls[0].rows, calls[0].shared
    rows = {name: torch.cat([call.rows[name] for call in calls]) for name in names}
    output = model(**rows, **shared, return_dict=False)[0]
    parts = output.split([call.row_count for call in calls])
    for trajectory, part in zip(trajectories, parts, strict=True):
        trajectory.take(part)


def _likeness(job: Job) -> tuple[str, bool]:
    """Of jobs that are equal in this, the denoiser's arguments can be stacked."""
    request = job.task.request
    return str(request.shape), request.guidance_scale > 1


def _expect_finite(trajectory: Trajectory) -> None:
    expect_finite(trajectory.latents, f"the latent after {trajectory.step} steps")


def _try_save(trajectory: Trajectory) -> Snapshot | None:
    """Return where a trajectory stands; None if its sampler is of a kind that cannot be saved."""
    _expect_finite(trajectory)
    try:
        return save(trajectory)
    except UnsavableStateError as error:
        sampler = type(trajectory.scheduler).__name__
        log.warning("pause_impossible", sampler=sampler, detail=str(error))
        return None
