"""The stage that trains the decoder of the autoencoder against the exact latents of drawings.

Independent of the denoiser, since the encoder is exact and fixed. A little noise on the latents
teaches it to forgive what a denoiser gets slightly wrong.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from models.training.autoencoder import build_autoencoder, fold, start_decoder_from
from models.training.batches import pictures_of
from models.training.optimisers import ADAM_RATE, MUON_RATE, Optimisers
from models.training.scenes import Mix, any_wish, is_held_out, lay_out, sample_wish

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from torch import Tensor

    from models.training.scenes import Scene

MOST_NOISE = 0.06
LARGER_NOISE = 0.1
"""For larger pictures, where the latent says less about each pixel."""
MIX = Mix(jitter=1.0, placed=0.2, pairs=0.4, later=0.0)
LARGER_MIX = Mix(jitter=1.0, placed=0.2, pairs=0.3, styled=0.6, later=1.5)
RATES = {1: (MUON_RATE, ADAM_RATE), 2: (MUON_RATE, ADAM_RATE), 4: (MUON_RATE / 4, ADAM_RATE / 4)}
"""Of Muon and AdamW, by how much a picture is shrunk: the last decoder begins nearly right."""
LARGER_SIZES: tuple[tuple[int, int], ...] = ((64, 64), (64, 64), (96, 64), (64, 96))
"""Before they are multiplied; half of the batches are square."""


class DecoderStage:
    """Trains the decoder; `model` is the whole autoencoder, `average` its smoothed twin."""

    def __init__(
        self,
        device: torch.device,
        batch: int = 8,
        *,
        shrink: int = 1,
        start: AutoencoderKL | None = None,
    ) -> None:
        """Start from a decoder whose residual blocks are identities, or from parts of a trained one."""
        self.name = "decoder" if shrink == 1 else f"decoder-{64 * shrink}"
        self.batch = batch
        self._device, self._shrink = device, shrink
        self.model = build_autoencoder(shrink).to(device)
        if start is not None:
            start_decoder_from(self.model.decoder, start.decoder)
        self._optimisers = Optimisers(
            [self.model.decoder], warmup=0.01, decay_from=0.4, rates=RATES[shrink]
        )

    def step(self, progress: float, rng: np.random.Generator) -> float:
        """One batch of drawings, reconstructed from slightly noisy latents."""
        target, latents = self._drawings(rng)
        most = MOST_NOISE if self._shrink == 1 else LARGER_NOISE
        level = torch.from_numpy(rng.uniform(0, most, (self.batch, 1, 1, 1)))
        noise = torch.from_numpy(rng.standard_normal(latents.shape, np.float32))
        latents = latents + level.to(latents) * noise.to(latents)
        with torch.autocast(self._device.type, torch.bfloat16):
            output = self.model.decoder(latents)
        loss = _loss(output.float(), target)
        loss.backward()
        self._optimisers.step(progress)
        return float(loss.detach())

    def _drawings(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Pictures and their latents.

        For larger pictures, every second latent is of the same scene drawn small, as the denoiser
        has learned to make them.
        """
        if self._shrink == 1:
            wishes = [sample_wish(rng, MIX) for _ in range(self.batch)]
            scenes = [lay_out(w, rng, jitter=MIX.jitter) for w in wishes]
            target = pictures_of(scenes, self._device)
            return target, fold(target)
        width_px, height_px = LARGER_SIZES[rng.integers(len(LARGER_SIZES))]
        wishes = [sample_wish(rng, LARGER_MIX) for _ in range(self.batch)]
        small = [lay_out(w, rng, (width_px, height_px), LARGER_MIX.jitter) for w in wishes]
        target = pictures_of([enlarged(scene, self._shrink) for scene in small], self._device)
        latents = fold(target, self._shrink)
        latents[::2] = fold(pictures_of(small[::2], self._device))
        return target, latents

    def smoothed(self) -> AutoencoderKL:
        """A copy of the autoencoder with averaged decoder weights, for use and export."""
        twin = build_autoencoder(self._shrink).to(self._device)
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


def enlarged(scene: Scene, times: int) -> Scene:
    """The same scene on more pixels."""
    return replace(scene, width_px=times * scene.width_px, height_px=times * scene.height_px)


@torch.no_grad()
def reconstruction_psnr_db(
    model: AutoencoderKL, device: torch.device, count: int = 64, shrink: int = 1
) -> float:
    """Mean PSNR over held-out drawings, after clipping to the displayable range."""
    rng = np.random.default_rng(1234)
    mix = MIX if shrink == 1 else LARGER_MIX
    wishes = [w for w in (any_wish(rng, mix) for _ in range(40 * count)) if is_held_out(w)][:count]
    side = 64 * shrink
    decibels = []
    for wish in wishes:
        target = pictures_of([lay_out(wish, rng, (side, side))], device)
        output = model.decode(fold(target, shrink)).sample.clamp(-1, 1)
        decibels.append(-10 * ((output - target).square().mean() / 4).log10())
    return float(torch.stack(decibels).mean())
