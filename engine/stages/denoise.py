"""The diffuse stage: the denoise loop, step by step, so that every step is a place to stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog
import torch

from engine.previews import preview_steps
from engine.stages.base import FamilyCode, Job, Snapshot, StageResult, Trajectory
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
        """Denoise outputs to their end, or to the boundary where they are to pause."""
        return [self._denoise(job, team) for job in jobs]

    def _denoise(self, job: Job, team: Team) -> StageResult:
        """Denoise one output.

        A pause that comes before the first step takes effect there; one after the last, never.
        """
        task, inputs, boundary, snapshot = job
        seed = task.request.seed + task.image_index
        trajectory = self._code.begin(self._pipe, task.request, seed, inputs, team)
        if snapshot is not None:
            restore(trajectory, snapshot)
        shown_at = preview_steps(task.request.previews, trajectory.steps)
        may_save = True
        while trajectory.step < trajectory.steps:
            if may_save and (boundary.wants_pause or boundary.wants_save):
                saved = _try_save(trajectory)
                may_save = saved is not None
                if saved is not None and boundary.wants_pause:
                    return StageResult({}, snapshot=saved)
                if saved is not None:
                    boundary.keep(saved)
            trajectory.advance()
            if trajectory.step in shown_at and (clean := clean_latents(trajectory)) is not None:
                boundary.show(shown_at.index(trajectory.step), clean)
            boundary.passed(trajectory.step, trajectory.steps)
        _expect_finite(trajectory)
        return StageResult({LATENTS: trajectory.latents})


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
