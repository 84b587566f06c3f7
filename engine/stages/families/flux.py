"""Flux.1: MM-DiT on packed 2x2 latents, guidance distilled into the model.

Follows `FluxPipeline.__call__` of diffusers 0.42 operation by operation.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from torch import Tensor

from engine.types import GenerationRequest


class Flux:
    """The three stages of `FluxPipeline`."""

    def encode(self, pipe: Any, request: GenerationRequest) -> dict[str, Tensor]:
        """Return T5 embeddings, the pooled CLIP embedding and the text position ids."""
        prompt, pooled, text_ids = pipe.encode_prompt(
            prompt=request.prompt, prompt_2=None, device=pipe.device
        )
        return {"prompt_embeds": prompt, "pooled_prompt_embeds": pooled, "text_ids": text_ids}

    def begin(
        self,
        pipe: Any,
        request: GenerationRequest,
        seed: int,
        inputs: Mapping[str, Tensor],
    ) -> FluxTrajectory:
        """Draw the noise and fix the timesteps."""
        return FluxTrajectory(pipe, request, seed, inputs)

    def decode(self, pipe: Any, request: GenerationRequest, latents: Tensor) -> Tensor:
        """Return pixels (1, 3, H, W)."""
        shape, config = request.shape, pipe.vae.config
        latents = pipe._unpack_latents(  # noqa: SLF001 - the library offers no public unpacking
            latents, shape.height_px, shape.width_px, pipe.vae_scale_factor
        )
        latents = (latents / config.scaling_factor) + config.shift_factor
        pixels: Tensor = pipe.vae.decode(latents, return_dict=False)[0]
        return pixels


class FluxTrajectory:
    """One request's packed latent (1, tokens, 4C), step and sampler."""

    def __init__(
        self,
        pipe: Any,
        request: GenerationRequest,
        seed: int,
        inputs: Mapping[str, Tensor],
    ) -> None:
        """Begin at step 0."""
        self._pipe, self._inputs = pipe, inputs
        config = pipe.transformer.config
        self.latents, self._image_ids = pipe.prepare_latents(
            1,
            config.in_channels // 4,
            request.shape.height_px,
            request.shape.width_px,
            inputs["prompt_embeds"].dtype,
            pipe.device,
            torch.Generator("cpu").manual_seed(seed),
        )
        self._guidance = None
        if config.guidance_embeds:
            scale = torch.full([1], request.guidance_scale, device=pipe.device, dtype=torch.float32)
            self._guidance = scale.expand(self.latents.shape[0])
        self.generator = None  # no step draws noise
        self.scheduler = copy.deepcopy(pipe.scheduler)  # sampler state belongs to the request
        self._timesteps = self._make_timesteps(request.steps)
        self.scheduler.set_begin_index(0)
        self.step, self.steps = 0, len(self._timesteps)

    def _make_timesteps(self, steps: int) -> Tensor:
        config = self.scheduler.config
        flow = getattr(config, "use_flow_sigmas", False)
        sigmas = None if flow else np.linspace(1.0, 1 / steps, steps)
        mu = calculate_shift(
            self.latents.shape[1],
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        timesteps: Tensor = retrieve_timesteps(
            self.scheduler, steps, self._pipe.device, sigmas=sigmas, mu=mu
        )[0]
        return timesteps

    def advance(self) -> None:
        """Do one denoise step."""
        t = self._timesteps[self.step]
        timestep = t.expand(self.latents.shape[0]).to(self.latents.dtype)
        noise = self._pipe.transformer(
            hidden_states=self.latents,
            timestep=timestep / 1000,
            guidance=self._guidance,
            pooled_projections=self._inputs["pooled_prompt_embeds"],
            encoder_hidden_states=self._inputs["prompt_embeds"],
            txt_ids=self._inputs["text_ids"],
            img_ids=self._image_ids,
            return_dict=False,
        )[0]
        self.latents = self.scheduler.step(noise, t, self.latents, return_dict=False)[0]
        self.step += 1
