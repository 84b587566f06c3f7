"""The clean latent that a step predicts, by every kind of sampler that models come with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import diffusers
import pytest
import torch
from torch import Tensor

from engine.stages.base import Evaluation, Trajectory
from engine.stages.clean import clean_latents

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers
SAMPLERS = [
    ("DDIMScheduler", {"prediction_type": "epsilon"}),
    ("DDIMScheduler", {"prediction_type": "v_prediction"}),
    ("PNDMScheduler", {"skip_prk_steps": True}),
    ("DDPMScheduler", {"prediction_type": "epsilon"}),
    ("EulerDiscreteScheduler", {"prediction_type": "epsilon"}),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("DPMSolverMultistepScheduler", {"prediction_type": "epsilon"}),
    ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}),
    ("DPMSolverMultistepScheduler", {"prediction_type": "sample", "use_flow_sigmas": True}),
    (
        "DPMSolverMultistepScheduler",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
    ),
    ("UniPCMultistepScheduler", {"prediction_type": "epsilon"}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
]


def mixed(scheduler: Any, clean: Tensor, noise: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Return the noisy latent at a step, and what a perfect model says of it."""
    t, kind = scheduler.timesteps[step], scheduler.config.get("prediction_type", "flow_prediction")
    if kind == "flow_prediction" and not hasattr(scheduler, "add_noise"):
        return scheduler.scale_noise(clean, t[None], noise), noise - clean
    noisy = scheduler.add_noise(clean, noise, t[None])
    if kind == "flow_prediction":
        return noisy, noise - clean
    kept = scheduler.alphas_cumprod[t.long()]
    velocity = kept**0.5 * noise - (1 - kept) ** 0.5 * clean
    return noisy, {"epsilon": noise, "v_prediction": velocity, "sample": clean}[kind]


@pytest.mark.parametrize(
    ("name", "config"), SAMPLERS, ids=[f"{n}-{c.get('prediction_type')}" for n, c in SAMPLERS]
)
@pytest.mark.parametrize("step", [0, 4])
def test_a_perfect_model_predicts_the_clean_latent(
    name: str, config: dict[str, Any], step: int
) -> None:
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(8)
    generator = torch.Generator().manual_seed(3)
    clean = torch.randn((1, 4, 8, 8), generator=generator)
    noise = torch.randn((1, 4, 8, 8), generator=generator)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(step)
    noisy, output = mixed(scheduler, clean, noise, step)
    t = scheduler.timesteps[step]
    scheduler.scale_model_input(noisy, t) if hasattr(scheduler, "scale_model_input") else None
    scheduler.step(output, t, noisy)
    trajectory = SimpleNamespace(
        repaint=None, scheduler=scheduler, last=Evaluation(noisy, output, t)
    )
    found = clean_latents(cast("Trajectory", trajectory))
    assert found is not None
    torch.testing.assert_close(found, clean, atol=2e-3, rtol=2e-3)


def test_before_the_first_step_there_is_nothing_to_show() -> None:
    trajectory = SimpleNamespace(scheduler=diffusers.DDIMScheduler(), last=None)
    assert clean_latents(cast("Trajectory", trajectory)) is None
