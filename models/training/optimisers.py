"""Muon for the matrices, AdamW for the rest, one learning-rate schedule, one moving average."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from models.training.muon import Muon

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

MUON_RATE = 2e-3
ADAM_RATE = 1e-3
FINAL_SHARE = 0.02
AVERAGE_DECAY = 0.998
_NOT_MATRICES = ("conv_in", "conv_out", "embedding")


class Optimisers:
    """Both optimisers over some modules, their schedule, gradient clipping and the average."""

    def __init__(
        self,
        modules: Sequence[nn.Module],
        *,
        warmup: float,
        decay_from: float,
        rates: tuple[float, float] = (MUON_RATE, ADAM_RATE),
    ) -> None:
        """Warm up until one share of the training, fall linearly from another on."""
        self._warmup, self._decay_from, self._rates = warmup, decay_from, rates
        self._parameters = _trained(modules)
        matrices, rest = _split(modules)
        self._muon = Muon(matrices, lr=rates[0])
        self._adam = torch.optim.AdamW(rest, lr=rates[1], betas=(0.9, 0.99), weight_decay=0.01)
        self._average = [parameter.detach().clone() for parameter in self._parameters]
        self._steps = 0

    def step(self, progress: float) -> None:
        """Clip, move, average and clear the gradients."""
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        share = self._rate_share(progress)
        for optimiser, rate in zip((self._muon, self._adam), self._rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * share
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self._steps += 1
        self._follow()

    def _rate_share(self, progress: float) -> float:
        rising = min(1.0, (progress + 1e-4) / self._warmup)
        left = (1 - progress) / (1 - self._decay_from)
        return rising * max(FINAL_SHARE, min(1.0, left))

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average; it forgets its start quickly."""
        decay = min(AVERAGE_DECAY, self._steps / (self._steps + 10))
        torch._foreach_lerp_(self._average, self._parameters, 1 - decay)

    @torch.no_grad()
    def copy_average_into(self, modules: Sequence[nn.Module]) -> None:
        """Give twins of the trained modules the averaged weights."""
        for target, average in zip(_trained(modules), self._average, strict=True):
            target.copy_(average)

    def state(self) -> dict[str, Any]:
        """Optimiser moments, averages and the step count."""
        return {
            "muon": self._muon.state_dict(),
            "adam": self._adam.state_dict(),
            "average": self._average,
            "steps": self._steps,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])
        for own, saved in zip(self._average, state["average"], strict=True):
            own.copy_(saved)
        self._steps = state["steps"]


def _trained(modules: Sequence[nn.Module]) -> list[Tensor]:
    return [parameter for module in modules for parameter in module.parameters()]


def _split(modules: Sequence[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
    """Inner matrices and kernels for Muon; ends, embeddings and vectors for AdamW."""
    matrices, rest = [], []
    for module in modules:
        for name, parameter in module.named_parameters():
            inner = parameter.ndim >= 2 and not any(part in name for part in _NOT_MATRICES)
            (matrices if inner else rest).append(parameter)
    return matrices, rest
