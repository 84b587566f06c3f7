"""Muon for matrices and convolutions: momentum, then the nearest orthogonal matrix as the step.

Needs far fewer pictures than AdamW here (design notes: colours after 13k pictures, not 38k+).
The weights it must not be used for (embeddings, first and last layers, vectors) go to AdamW.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
_RMS_MATCH = 0.2
"""Makes the size of a step about that of AdamW, so that both share one learning rate schedule."""


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """Five Newton-Schulz steps towards the orthogonal factor of a (rows, columns) matrix."""
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = (x / (x.norm() + 1e-7)).bfloat16()
    for _ in range(_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum of 0.95, orthogonalised; convolutions are flattened to (out, rest)."""

    def __init__(
        self, params: Iterable[torch.Tensor], lr: float = 2e-3, momentum: float = 0.95
    ) -> None:
        """Take matrices and convolution kernels only."""
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient; closures are not supported."""
        if closure is not None:
            message = "Muon.step takes no closure: compute the gradients before calling it"
            raise ValueError(message)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group["lr"], group["momentum"])

    def _move(self, parameter: torch.Tensor, lr: float, momentum: float) -> None:
        gradient = parameter.grad
        state = self.state[parameter]
        if not state:
            state["velocity"] = torch.zeros_like(gradient)
        velocity = state["velocity"].lerp_(gradient, 1 - momentum)
        ahead = gradient.lerp(velocity, momentum).reshape(gradient.shape[0], -1)
        step = orthogonalise(ahead)
        scale = _RMS_MATCH * max(step.shape) ** 0.5
        parameter.add_(step.reshape(parameter.shape), alpha=-lr * scale)
