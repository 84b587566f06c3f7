"""Whether a stage's result is made of numbers: NaN and infinity must not become a black picture."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.errors import NotFiniteError


def expect_finite(tensor: Tensor, what: str) -> None:
    """Raise `NotFiniteError` if a tensor holds NaN or infinity; on CUDA this waits for the device."""
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        count = int((~torch.isfinite(tensor)).sum())
        message = f"{count} of {tensor.numel()} numbers of {what} are NaN or infinite."
        raise NotFiniteError(message)
