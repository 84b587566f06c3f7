"""The stage that trains the decoder of the autoencoder against the exact latents of drawings.

Independent of the denoiser, since the encoder is exact and fixed. A little noise on the latents
teaches it to forgive what a denoiser gets slightly wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from models.training.autoencoder import build_autoencoder, fold
from models.training.batches import pictures_of
from models.training.optimisers import Optimisers
from models.training.scenes import Mix, any_wish, is_held_out, lay_out, sample_wish

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from torch import Tensor

MOST_NOISE = 0.06
_MIX = Mix(jitter=1.0, placed=0.2, pairs=0.4)


class DecoderStage:
    """Trains the decoder; `model` is the whole autoencoder, `average` its smoothed twin."""

    name = "decoder"

    def __init__(self, device: torch.device, batch: int = 8) -> None:
        """Start from a decoder whose residual blocks are identities."""
        self.batch = batch
        self._device = device
        self.model = build_autoencoder().to(device)
        self._optimisers = Optimisers([self.model.decoder], warmup=0.01, decay_from=0.4)

    def step(self, progress: float, rng: np.random.Generator) -> float:
        """One batch of drawings, reconstructed from slightly noisy latents."""
        wishes = [sample_wish(rng, _MIX) for _ in range(self.batch)]
        target = pictures_of([lay_out(w, rng, jitter=_MIX.jitter) for w in wishes], self._device)
        latents = fold(target)
        level = torch.from_numpy(rng.uniform(0, MOST_NOISE, (self.batch, 1, 1, 1)))
        noise = torch.from_numpy(rng.standard_normal(latents.shape, np.float32))
        latents = latents + level.to(latents) * noise.to(latents)
        with torch.autocast(self._device.type, torch.bfloat16):
            output = self.model.decoder(latents)
        loss = _loss(output.float(), target)
        loss.backward()
        self._optimisers.step(progress)
        return float(loss.detach())

    def smoothed(self) -> AutoencoderKL:
        """A copy of the autoencoder with averaged decoder weights, for use and export."""
        twin = build_autoencoder().to(self._device)
        twin.load_state_dict(self.model.state_dict())
        self._optimisers.copy_average_into([twin.decoder])
        return twin.eval()

    def state(self) -> dict[str, Any]:
        """Weights, averages and optimisers."""
        return {"model": self.model.state_dict(), "optimisers": self._optimisers.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.model.load_state_dict(state["model"])
        self._optimisers.restore(state["optimisers"])


def _loss(output: Tensor, target: Tensor) -> Tensor:
    """Absolute error keeps flat parts flat, squared error punishes wrong pixels on edges."""
    return functional.l1_loss(output, target) + 2 * functional.mse_loss(output, target)


@torch.no_grad()
def reconstruction_psnr_db(
    model: AutoencoderKL, device: torch.device, count: int = 64, size_px: tuple[int, int] = (64, 64)
) -> float:
    """Mean PSNR over held-out drawings, after clipping to the displayable range."""
    rng = np.random.default_rng(1234)
    wishes = [w for w in (any_wish(rng, _MIX) for _ in range(40 * count)) if is_held_out(w)][:count]
    target = pictures_of([lay_out(wish, rng, size_px) for wish in wishes], device)
    output = model.decode(fold(target)).sample.clamp(-1, 1)
    error = (output - target).square().mean(dim=(1, 2, 3)) / 4
    return float((-10 * error.log10()).mean())
