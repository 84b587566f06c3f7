"""The stage that trains text encoder and UNet together on drawings made on the fly.

A curriculum moves from single objects near the middle to placed objects, pairs and, late, other
picture sizes. Small objects come more often and weigh more in the loss; the size is in the
caption, so this does not bias what the model learns to draw for a given caption.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from models.training.autoencoder import fold
from models.training.batches import pictures_of
from models.training.captions import say
from models.training.denoiser import build_text_encoder, build_unet
from models.training.grow import grow_text_encoder
from models.training.optimisers import Optimisers
from models.training.scenes import Mix, lay_out, sample_wish
from models.training.tokens import build_tokenizer, token_ids, unknown_id, untrained_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from torch import Tensor
    from transformers import CLIPTextModel, CLIPTokenizer

    from models.training.scenes import Scene

FLOW_SHIFT = 3.0
"""For 64 x 64; in proportion to the side for others: a picture with twice the side shows twice as
much through the same noise."""
LEAST_NOISE_WEIGHTED = 0.3
DROPPED_CAPTIONS = 0.1
JUNK_CAPTIONS = 0.04
JUNK_WORD = "\N{EM DASH}"
"""Not in the vocabulary: one unknown token after another."""
SQUARE_PX = (64, 64)
OTHER_SIZES_PX: Mapping[tuple[int, int], float] = MappingProxyType(
    {
        (96, 64): 0.2,
        (64, 96): 0.2,
        (96, 96): 0.3,
        (80, 64): 0.08,
        (64, 80): 0.08,
        (112, 64): 0.07,
        (64, 112): 0.07,
    }
)
"""Picture sizes besides 64 x 64, width first, and how often each comes among them. The models for
larger pictures show the same grids of latents, so these are their aspect ratios too."""


@dataclass(frozen=True, slots=True)
class Curriculum:
    """When the training becomes harder, as shares of the whole.

    Attributes:
        widen_from: Until here single objects near the middle.
        widen_until: From here on places, and 40 % pairs.
        sizes_from: From here on pictures of other sizes than 64 x 64.
        sizes_share: How many batches are of other sizes.
        styled: Share of single objects, if not small, that are outlined or striped.
        later: How often each of the later shapes comes, one of the first ten coming once.
    """

    widen_from: float = 0.12
    widen_until: float = 0.3
    sizes_from: float = 0.5
    sizes_share: float = 0.25
    styled: float = 0.0
    later: float = 1.0

    def mix(self, progress: float) -> Mix:
        """Jitter, placed objects and pairs grow together."""
        grown = (progress - self.widen_from) / (self.widen_until - self.widen_from)
        share = min(1.0, max(0.0, grown))
        return Mix(0.1 + 0.5 * share, 0.25 * share, 0.4 * share, self.styled, self.later)

    def size_px(self, progress: float, rng: np.random.Generator) -> tuple[int, int]:
        """64 x 64 first, then a share of other sizes, by `OTHER_SIZES_PX`."""
        if progress < self.sizes_from or rng.random() > self.sizes_share:
            return SQUARE_PX
        shares = np.array(list(OTHER_SIZES_PX.values()))
        return list(OTHER_SIZES_PX)[rng.choice(len(shares), p=shares / shares.sum())]


FIRST = Curriculum(sizes_from=0.5, sizes_share=0.25)
"""From nothing: shapes, then places and pairs, then some larger pictures."""
WIDER = Curriculum(
    widen_from=-1.0,
    widen_until=0.0,
    sizes_from=0.2,
    sizes_share=0.35,
    styled=0.6,
    later=2.0,
)
"""From trained weights: outlined and striped objects, a dozen shapes, more aspect ratios."""


class DenoiserStage:
    """Trains UNet and text encoder in bfloat16 where autocast allows it, weights in float32."""

    def __init__(
        self,
        device: torch.device,
        curriculum: Curriculum = FIRST,
        *,
        start: StableDiffusionPipeline | None = None,
        name: str = "denoiser",
        batch: int = 32,
    ) -> None:
        """Start from random weights, or from those of a trained pipeline, which are copied."""
        self.name, self.batch = name, batch
        self.tokenizer: CLIPTokenizer = build_tokenizer()
        self._device = device
        self._curriculum = curriculum
        self.text_encoder: CLIPTextModel = build_text_encoder(self.tokenizer)
        self.unet: UNet2DConditionModel = build_unet()
        if start is not None:
            grow_text_encoder(start.text_encoder, len(self.tokenizer), unknown_id(self.tokenizer))
            self.text_encoder.load_state_dict(start.text_encoder.float().state_dict())
            self.unet.load_state_dict(start.unet.float().state_dict())
        for module in self._modules():
            module.to(device).train()
        self._optimisers = Optimisers(
            self._modules(),
            warmup=0.005 if start is None else 0.03,
            decay_from=0.5 if start is None else 0.4,
        )

    def _modules(self) -> list[torch.nn.Module]:
        return [self.unet, self.text_encoder]

    def step(self, progress: float, rng: np.random.Generator) -> float:
        """One batch; larger pictures come in smaller batches, of about the same work."""
        size_px = self._curriculum.size_px(progress, rng)
        mix = self._curriculum.mix(progress)
        count = max(4, self.batch * SQUARE_PX[0] * SQUARE_PX[1] // (size_px[0] * size_px[1]))
        wishes = [sample_wish(rng, mix) for _ in range(count)]
        scenes = [lay_out(wish, rng, size_px, mix.jitter) for wish in wishes]
        captions = [_blur(say(wish, rng), rng) for wish in wishes]
        loss = self._loss(scenes, captions, rng)
        loss.backward()
        self._optimisers.step(progress)
        return float(loss.detach())

    def _loss(
        self, scenes: Sequence[Scene], captions: Sequence[str], rng: np.random.Generator
    ) -> Tensor:
        clean = fold(pictures_of(scenes, self._device))
        shift = FLOW_SHIFT * (scenes[0].width_px * scenes[0].height_px) ** 0.5 / SQUARE_PX[0]
        level = _noise_levels(len(scenes), shift, rng).to(clean)  # (B,)
        noise = torch.from_numpy(rng.standard_normal(tuple(clean.shape), np.float32)).to(clean)
        spread = level[:, None, None, None]
        noisy = (1 - spread) * clean + spread * noise
        predicted = self._predict(noisy, level, captions)
        error = (predicted - clean).square().mean(dim=(1, 2, 3))
        weight = _size_weights(scenes).to(clean) / level.clamp(min=LEAST_NOISE_WEIGHTED) ** 2
        return (error * weight).mean()

    def _predict(self, noisy: Tensor, level: Tensor, captions: Sequence[str]) -> Tensor:
        ids = token_ids(self.tokenizer, captions).to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16):
            text = self.text_encoder(ids)[0]
            return self.unet(noisy, 1000 * level, text, return_dict=False)[0].float()

    def smoothed(self) -> tuple[UNet2DConditionModel, CLIPTextModel]:
        """Copies with averaged weights; unused word pieces mean what the unknown word means."""
        twins = [copy.deepcopy(module).eval() for module in self._modules()]
        self._optimisers.copy_average_into(twins)
        table = twins[1].get_input_embeddings().weight
        with torch.no_grad():
            table[untrained_ids(self.tokenizer)] = table[unknown_id(self.tokenizer)].clone()
        return twins[0], twins[1]

    def state(self) -> dict[str, Any]:
        """Weights, averages and optimisers."""
        return {
            "unet": self.unet.state_dict(),
            "text_encoder": self.text_encoder.state_dict(),
            "optimisers": self._optimisers.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.unet.load_state_dict(state["unet"])
        self.text_encoder.load_state_dict(state["text_encoder"])
        self._optimisers.restore(state["optimisers"])


def _noise_levels(count: int, shift: float, rng: np.random.Generator) -> Tensor:
    """Stratified over the batch, shifted towards much noise."""
    uniform = (rng.permutation(count) + rng.random(count)) / count
    shifted = shift * uniform / (1 + (shift - 1) * uniform)
    return torch.from_numpy(shifted.astype(np.float32))


def _size_weights(scenes: Sequence[Scene]) -> Tensor:
    """Small objects cover few pixels, so they weigh more: about 2, 1.3 and 0.96."""
    radii = np.array([np.mean([thing.radius for thing in scene.things]) for scene in scenes])
    return torch.from_numpy((0.75 / radii).astype(np.float32))


def _blur(caption: str, rng: np.random.Generator) -> str:
    """Drop some captions, for guidance, and put unknown words into a few."""
    if rng.random() < DROPPED_CAPTIONS:
        return ""
    if rng.random() >= JUNK_CAPTIONS:
        return caption
    spoken = caption.split()
    spoken.insert(int(rng.integers(len(spoken) + 1)), JUNK_WORD)
    return " ".join(spoken)
