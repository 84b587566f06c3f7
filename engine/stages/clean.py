"""What a sampler would end with if it stopped now: the clean latent that a step predicts.

By the definitions of the samplers' parameterisations (noise, velocity, flow or the sample itself,
Salimans and Ho 2022, Lipman et al. 2023). Reads the trajectory only; it draws no random numbers
and changes nothing, so a request that is shown ends with the same bytes as one that is not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from engine.stages.base import Trajectory


class _Mix(NamedTuple):
    """A noisy latent is `alpha * clean + sigma * noise`."""

    alpha: Any
    sigma: Any


def clean_latents(trajectory: Trajectory) -> Tensor | None:
    """Return the clean latent that the last step predicts; None if its sampler cannot be read."""
    clean = _predicted(trajectory)
    if clean is None or trajectory.repaint is None:
        return clean
    return trajectory.repaint.blend(clean, None)


def _predicted(trajectory: Trajectory) -> Tensor | None:
    last, scheduler = trajectory.last, trajectory.scheduler
    if last is None:
        return None
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    if kind == "sample":
        return last.output
    mix = _mix_of(scheduler, last.timestep)
    if mix is None:
        return None
    noisy = last.latents.float()
    output = last.output.float()
    clean: Tensor
    match kind:
        case "epsilon":
            clean = (noisy - mix.sigma * output) / mix.alpha
        case "v_prediction":  # of a mix whose squares add up to one
            norm = (mix.alpha**2 + mix.sigma**2) ** 0.5
            clean = (mix.alpha * noisy / norm - mix.sigma * output) / norm
        case "flow_prediction":
            clean = noisy - mix.sigma * output
        case _:
            return None
    return clean.to(last.latents.dtype)


def _mix_of(scheduler: Any, timestep: Tensor) -> _Mix | None:
    """Return how the latent before the last step was mixed, in the sampler's own scale."""
    sigmas, index = getattr(scheduler, "sigmas", None), getattr(scheduler, "step_index", None)
    if sigmas is None or index is None:
        cumulative = getattr(scheduler, "alphas_cumprod", None)
        if cumulative is None:
            return None
        kept = cumulative[timestep.long().cpu()].to(timestep.device)
        return _Mix(kept**0.5, (1 - kept) ** 0.5)
    sigma = sigmas[max(0, index - 1)].to(timestep.device)
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):  # the multistep solvers
        return _Mix(*scheduler._sigma_to_alpha_sigma_t(sigma))  # noqa: SLF001 - the library's own
    return _Mix(1.0, sigma)  # Euler and its kin, and flow matching, which reads sigma only
