"""Stable Diffusion 3 and 3.5: MM-DiT with classifier-free guidance in one batch of two.

Follows `StableDiffusion3Pipeline.__call__` of diffusers 0.42 operation by operation.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    calculate_shift,
    retrieve_timesteps,
)
from torch import Tensor

from engine.types import GenerationRequest

_NAMES = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)


class StableDiffusion3:
    """The three stages of `StableDiffusion3Pipeline`."""

    def encode(self, pipe: Any, request: GenerationRequest) -> dict[str, Tensor]:
        """Return prompt and pooled embeddings, negative ones too if guidance is on."""
        embeddings = pipe.encode_prompt(
            prompt=request.prompt,
            prompt_2=None,
            prompt_3=None,
            negative_prompt=request.negative_prompt,
            do_classifier_free_guidance=request.guidance_scale > 1,
            device=pipe.device,
        )
        named = zip(_NAMES, embeddings, strict=True)
        return {name: tensor for name, tensor in named if tensor is not None}

    def begin(
        self,
        pipe: Any,
        request: GenerationRequest,
        seed: int,
        inputs: Mapping[str, Tensor],
    ) -> Sd3Trajectory:
        """Draw the noise and fix the timesteps."""
        return Sd3Trajectory(pipe, request, seed, inputs)

    def decode(self, pipe: Any, request: GenerationRequest, latents: Tensor) -> Tensor:
        """Return pixels (1, 3, H, W)."""
        del request
        config = pipe.vae.config
        latents = (latents / config.scaling_factor) + config.shift_factor
        pixels: Tensor = pipe.vae.decode(latents, return_dict=False)[0]
        return pixels


class Sd3Trajectory:
    """One request's latent (1, C, h, w), step and sampler."""

    def __init__(
        self,
        pipe: Any,
        request: GenerationRequest,
        seed: int,
        inputs: Mapping[str, Tensor],
    ) -> None:
        """Begin at step 0."""
        self._pipe, self._guidance = pipe, request.guidance_scale
        self._prompt = inputs["prompt_embeds"]  # (B, T, D); B = 2 with guidance
        self._pooled = inputs["pooled_prompt_embeds"]  # (B, P)
        if self._guided:
            self._prompt = torch.cat([inputs["negative_prompt_embeds"], self._prompt], dim=0)
            self._pooled = torch.cat([inputs["negative_pooled_prompt_embeds"], self._pooled], dim=0)
        self.latents = pipe.prepare_latents(
            1,
            pipe.transformer.config.in_channels,
            request.shape.height_px,
            request.shape.width_px,
            self._prompt.dtype,
            pipe.device,
            torch.Generator("cpu").manual_seed(seed),
        )
        self.generator = None  # no step draws noise
        self.scheduler = copy.deepcopy(pipe.scheduler)  # sampler state belongs to the request
        self._timesteps = self._make_timesteps(request.steps)
        self.step, self.steps = 0, len(self._timesteps)

    @property
    def _guided(self) -> bool:
        return self._guidance > 1

    def _make_timesteps(self, steps: int) -> Tensor:
        config, shift = self.scheduler.config, {}
        if config.get("use_dynamic_shifting", None):
            patch = self._pipe.transformer.config.patch_size
            height, width = self.latents.shape[-2:]
            shift["mu"] = calculate_shift(
                (height // patch) * (width // patch),
                config.get("base_image_seq_len", 256),
                config.get("max_image_seq_len", 4096),
                config.get("base_shift", 0.5),
                config.get("max_shift", 1.16),
            )
        timesteps: Tensor = retrieve_timesteps(self.scheduler, steps, self._pipe.device, **shift)[0]
        return timesteps

    def advance(self) -> None:
        """Do one denoise step."""
        t = self._timesteps[self.step]
        model_input = torch.cat([self.latents] * 2) if self._guided else self.latents
        noise = self._pipe.transformer(
            hidden_states=model_input,
            timestep=t.expand(model_input.shape[0]),
            encoder_hidden_states=self._prompt,
            pooled_projections=self._pooled,
            return_dict=False,
        )[0]
        if self._guided:
            unconditional, conditional = noise.chunk(2)
            noise = unconditional + self._guidance * (conditional - unconditional)
        self.latents = self.scheduler.step(noise, t, self.latents, return_dict=False)[0]
        self.step += 1
