"""What a paused diffuse leaves behind: every kind of sampler goes on bit for bit after it."""

from __future__ import annotations

import inspect
import json
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from engine.stages.base import Snapshot
from engine.stages.saving import UnsavableStateError, restore, save

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers
STEPS = 8
# All kinds of memory: none, an index, earlier outputs, lists, a last sample, noise drawn per step.
SAMPLERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)


class Walk:
    """A trajectory whose denoiser is a formula, in a layout that is not contiguous."""

    def __init__(self, sampler: str) -> None:
        self.scheduler: Any = getattr(diffusers, sampler)()
        self.scheduler.set_timesteps(STEPS)
        self.generator = torch.Generator().manual_seed(3)
        noise = torch.randn(1, 5, 4, 6, generator=self.generator).permute(0, 2, 1, 3)
        self.latents = noise * getattr(self.scheduler, "init_noise_sigma", 1.0)
        self.step, self.steps = 0, len(self.scheduler.timesteps)

    def advance(self) -> None:
        t = self.scheduler.timesteps[self.step]
        takes = inspect.signature(self.scheduler.step).parameters
        extras = {"generator": self.generator} if "generator" in takes else {}
        noise = torch.sin(self.latents * 1.7 + float(t))
        self.latents = self.scheduler.step(noise, t, self.latents, **extras, return_dict=False)[0]
        self.step += 1


def through_text(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot as another process gets it: no tensor shares memory with ours."""
    assert all(tensor.is_contiguous() for tensor in snapshot.tensors.values())
    return Snapshot({k: v.clone() for k, v in snapshot.tensors.items()}, str(snapshot.outline))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_walk_that_is_saved_after_every_step_ends_where_an_undisturbed_one_does(
    sampler: str,
) -> None:
    undisturbed, walk = Walk(sampler), Walk(sampler)
    while undisturbed.step < undisturbed.steps:
        undisturbed.advance()
        heir = Walk(sampler)
        restore(heir, through_text(save(walk)))
        assert heir.latents.stride() == walk.latents.stride()
        heir.advance()
        walk = heir
        assert torch.equal(walk.latents, undisturbed.latents), walk.step
    assert walk.step == walk.steps


def saved_and_restored(value: object) -> Any:
    walk, heir = Walk("DDIMScheduler"), Walk("DDIMScheduler")
    walk.scheduler.memory = value
    restore(heir, through_text(save(walk)))
    return heir.scheduler.memory


@pytest.mark.parametrize(
    "value",
    [None, True, -3, 0.1 + 0.2, float("inf"), "text", (1, (2, None)), [], {"tensor": [1.5]}],
)
def test_what_is_no_tensor_comes_back_as_it_was(value: object) -> None:
    again = saved_and_restored(value)
    assert (again, type(again)) == (value, type(value))


def test_numpy_keeps_its_own_types() -> None:
    array = saved_and_restored(np.linspace(0, 1, 7, dtype=np.float64))
    assert array.dtype == np.float64
    assert np.array_equal(array, np.linspace(0, 1, 7))
    number = saved_and_restored(np.float32(0.1))
    assert (number, type(number)) == (np.float32(0.1), np.float32)


def test_the_outline_is_small_and_plain_json() -> None:
    outline = json.loads(save(Walk("DPMSolverMultistepScheduler")).outline)
    assert outline["dict"]["step"] == 0
    assert len(json.dumps(outline)) < 5000


@pytest.mark.parametrize("value", [object(), {1: 2}, SimpleNamespace(a=1), np.array(["a"])])
def test_what_cannot_be_told_is_refused_and_never_pickled(value: object) -> None:
    with pytest.raises(UnsavableStateError, match=r"state\.sampler\.memory"):
        saved_and_restored(value)
