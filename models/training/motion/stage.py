"""The stage that trains the inflated UNet and its text encoder on clips made on the fly.

Nothing is frozen: text reaches the picture through layers of the still UNet, which have never
heard of a direction. Target, noise and loss weights are those of the stills; all frames of a clip
share one noise level, and each has noise of its own.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import UNetMotionModel

from models.training.autoencoder import fold
from models.training.batches import pictures_of
from models.training.diffusion import DROPPED_CAPTIONS, LEAST_NOISE_WEIGHTED
from models.training.motion.movements import (
    BOUNCING,
    FRAMES,
    MOVING,
    STILL,
    lay_out_clip,
    sample_clip_wish,
)
from models.training.motion.network import inflate, lengthened, parts_of
from models.training.motion.phrases import motion_words, say_clip
from models.training.motion.words import (
    extend_embeddings,
    extended_tokenizer,
    untaught_ids,
)
from models.training.optimisers import Optimisers
from models.training.tokens import token_ids, unknown_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import AnimateDiffPipeline, StableDiffusionPipeline
    from torch import Tensor
    from transformers import CLIPTextModel, CLIPTokenizer

    from models.training.motion.movements import ClipWish
    from models.training.scenes import Scene

NOISE_SHIFT = 6.0
"""More noise than for stills (3): nine frames tell more about a clip than one."""
NEARLY_NOISE_EVERY = 2
"""One clip in so many has a noise level in the last few percent. Below, a course can be seen
through the noise, and captions would never be asked which way it goes."""
NEARLY_NOISE = 0.03
FIRST_RATES = (1.5e-3, 1e-3), (4e-3, 2e-3)
"""Of Muon and AdamW, for what comes from the stills and for the motion modules, which have further
to go."""
SECOND_RATES = (3e-4, 3e-4), (1.5e-3, 8e-4)
"""A second part at the full rates made the edges of straight movements rougher."""
BACK_FROM, BACK_UNTIL = 0.12, 0.25
"""When left, up and shrinking join, as shares of the first training. With all movements from the start,
neither the number of a frame nor the word alone says anything about where the object is, only
both together do, and nothing was learned about either in 2,800 clips."""


MIDDLE_FRAMES, LONG_FRAMES = (10, 20), (21, 33)
"""Least and most frames of the longer clips of a batch in the second part."""
EXACT_SHARE = 0.6
"""How often they have 17 and 33 frames; any other number of their range comes as often as another."""


class MotionStage:
    """Trains in bfloat16 where autocast allows it, weights in float32; starts from the stills."""

    def __init__(
        self,
        start: StableDiffusionPipeline | AnimateDiffPipeline,
        device: torch.device,
        batch: int = 4,
        *,
        name: str = "motion",
    ) -> None:
        """Inflate the UNet of trained stills, or go on from trained clips; teach new words.

        On stills, straight movements are trained in short clips; on clips, longer ones and bounces too.
        """
        self.name, self.batch = name, batch
        self._is_first = not isinstance(start.unet, UNetMotionModel)
        spoken = motion_words((*MOVING, STILL) if self._is_first else (*MOVING, STILL, BOUNCING))
        self.tokenizer: CLIPTokenizer = extended_tokenizer(start.tokenizer, spoken)
        self._device = device
        self._known, self._spoken = start.text_encoder.get_input_embeddings().num_embeddings, spoken
        self.text_encoder: CLIPTextModel = start.text_encoder.float()
        extend_embeddings(self.text_encoder, self.tokenizer)
        self.text_encoder.set_attn_implementation("eager")
        self.text_encoder.to(device).train()
        begin = inflate if self._is_first else lengthened
        self.unet: UNetMotionModel = begin(start.unet.float()).to(device).train()
        self._optimisers = [
            Optimisers(
                modules,
                warmup=0.01 if self._is_first else 0.04,
                decay_from=0.5 if self._is_first else 0.35,
                rates=rates,
            )
            for modules, rates in zip(
                self._groups(self.unet, self.text_encoder),
                FIRST_RATES if self._is_first else SECOND_RATES,
                strict=True,
            )
        ]

    @staticmethod
    def _groups(unet: UNetMotionModel, text_encoder: CLIPTextModel) -> list[list[torch.nn.Module]]:
        """What was trained before, and what is new."""
        stills, motion = parts_of(unet)
        return [[stills, text_encoder], [motion]]

    def step(self, progress: float, rng: np.random.Generator) -> float:
        """One batch of clips; those of one length go through the network together.

        Their gradients are added up: a step never follows a single clip.
        """
        lengths = [FRAMES] * self.batch if self._is_first else mixed_lengths(self.batch, rng)
        levels = _noise_levels(len(lengths), rng)
        loss = 0.0
        for frames in dict.fromkeys(lengths):
            rows = [row for row, length in enumerate(lengths) if length == frames]
            part = self._part_loss(frames, levels[rows], progress, rng) / len(lengths)
            part.backward()
            loss += float(part.detach())
        for optimisers in self._optimisers:
            optimisers.step(progress)
        return loss

    def _part_loss(
        self, frames: int, levels: Tensor, progress: float, rng: np.random.Generator
    ) -> Tensor:
        """The summed losses of clips of one length, one per noise level."""
        wishes = [self._wish(progress, rng) for _ in levels]
        clips = [lay_out_clip(wish, rng, frames) for wish in wishes]
        captions = [
            "" if rng.random() < DROPPED_CAPTIONS else say_clip(wish, rng) for wish in wishes
        ]
        return self._loss(clips, captions, levels, rng)

    def _wish(self, progress: float, rng: np.random.Generator) -> ClipWish:
        if not self._is_first:
            return sample_clip_wish(rng)
        joined = (progress - BACK_FROM) / (BACK_UNTIL - BACK_FROM)
        return sample_clip_wish(rng, 0.5 * min(1.0, max(0.0, joined)), straight=True)

    def _loss(
        self,
        clips: Sequence[Sequence[Scene]],
        captions: Sequence[str],
        levels: Tensor,
        rng: np.random.Generator,
    ) -> Tensor:
        clean = latents_of(clips, self._device)  # (B, 48, F, h, w)
        level = levels.to(clean)  # (B,)
        noise = torch.from_numpy(rng.standard_normal(tuple(clean.shape), np.float32)).to(clean)
        spread = level[:, None, None, None, None]
        noisy = (1 - spread) * clean + spread * noise
        predicted = self._predict(noisy, level, captions)
        error = (predicted - clean).square().mean(dim=(1, 2, 3, 4))
        weight = _size_weights(clips).to(clean) / level.clamp(min=LEAST_NOISE_WEIGHTED) ** 2
        return (error * weight).sum()

    def _predict(self, noisy: Tensor, level: Tensor, captions: Sequence[str]) -> Tensor:
        ids = token_ids(self.tokenizer, captions).to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16):
            text = self.text_encoder(ids)[0].repeat_interleave(noisy.shape[2], dim=0)
            return self.unet(noisy, 1000 * level, text, return_dict=False)[0].float()

    def smoothed(self) -> tuple[UNetMotionModel, CLIPTextModel]:
        """Copies with averaged weights; pieces of new words mean what the unknown word means."""
        unet, text_encoder = (copy.deepcopy(m).eval() for m in (self.unet, self.text_encoder))
        groups = self._groups(unet, text_encoder)
        for optimisers, modules in zip(self._optimisers, groups, strict=True):
            optimisers.copy_average_into(modules)
        table = text_encoder.get_input_embeddings().weight
        with torch.no_grad():
            untaught = untaught_ids(self.tokenizer, self._known, self._spoken)
            table[untaught] = table[unknown_id(self.tokenizer)].clone()
        return unet, text_encoder

    def state(self) -> dict[str, Any]:
        """Weights, averages and optimisers."""
        return {
            "unet": self.unet.state_dict(),
            "text_encoder": self.text_encoder.state_dict(),
            "optimisers": [optimisers.state() for optimisers in self._optimisers],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.unet.load_state_dict(state["unet"])
        self.text_encoder.load_state_dict(state["text_encoder"])
        for optimisers, saved in zip(self._optimisers, state["optimisers"], strict=True):
            optimisers.restore(saved)


def latents_of(clips: Sequence[Sequence[Scene]], device: torch.device) -> Tensor:
    """Drawn and folded clips of equal length, (B, 48, F, h, w), as the video UNet takes them."""
    flat = fold(pictures_of([scene for clip in clips for scene in clip], device))
    return flat.unflatten(0, (len(clips), -1)).transpose(1, 2).contiguous()


def mixed_lengths(count: int, rng: np.random.Generator) -> list[int]:
    """Half the usual nine frames, a quarter of middling length, a quarter long, in random order."""
    longer = [
        exact if rng.random() < EXACT_SHARE else int(rng.integers(least, most + 1))
        for exact, (least, most) in ((17, MIDDLE_FRAMES), (33, LONG_FRAMES))
        for _ in range(count // 4)
    ]
    lengths = [*longer, *[FRAMES] * (count - len(longer))]
    return [lengths[index] for index in rng.permutation(count)]


def _noise_levels(count: int, rng: np.random.Generator) -> Tensor:
    """Stratified over the batch, shifted towards much noise; some are nothing but noise."""
    uniform = (rng.permutation(count) + rng.random(count)) / count
    shifted = NOISE_SHIFT * uniform / (1 + (NOISE_SHIFT - 1) * uniform)
    # From a random one on, so that no place of a batch is always nearly noise.
    chosen = slice(int(rng.integers(NEARLY_NOISE_EVERY)), None, NEARLY_NOISE_EVERY)
    shifted[chosen] = 1 - NEARLY_NOISE * rng.random(len(shifted[chosen]))
    return torch.from_numpy(shifted.astype(np.float32))


def _size_weights(clips: Sequence[Sequence[Scene]]) -> Tensor:
    """Small objects cover few pixels, so they weigh more; a medium one weighs 1.3 as before."""
    radii = np.array([np.mean([scene.things[0].radius for scene in clip]) for clip in clips])
    return torch.from_numpy((0.75 / radii).astype(np.float32))
