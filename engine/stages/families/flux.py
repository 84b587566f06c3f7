"""Flux.1: MM-DiT on packed 2x2 latents, guidance distilled into the model.

Follows `FluxPipeline.__call__` of diffusers 0.42 operation by operation, with a source its
image-to-image and inpaint pipelines.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from torch import Tensor

from engine.stages.attention import attention_across
from engine.stages.base import Call, Evaluation, Repaint
from engine.stages.batching import each
from engine.stages.source import MASK, MOMENTS, KeptLatents, draw_latents, draw_like
from engine.stages.team import Team, at_most, gather, share
from engine.types import GenerationRequest


class Flux:
    """The three stages of `FluxPipeline`."""

    def encode(self, pipe: Any, requests: Sequence[GenerationRequest]) -> list[dict[str, Tensor]]:
        """Return T5 embeddings, the pooled CLIP embedding and the text position ids."""
        prompt, pooled, text_ids = pipe.encode_prompt(
            prompt=[request.prompt for request in requests], prompt_2=None, device=pipe.device
        )
        embeddings = each({"prompt_embeds": prompt, "pooled_prompt_embeds": pooled}, len(requests))
        return [tensors | {"text_ids": text_ids} for tensors in embeddings]

    def begin(
        self,
        pipe: Any,
        request: GenerationRequest,
        seed: int,
        inputs: Mapping[str, Tensor],
        team: Team,
    ) -> FluxTrajectory:
        """Draw the noise and fix the timesteps."""
        return FluxTrajectory(pipe, request, seed, inputs, team)

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
    """One request's packed latent (1, tokens, 4C), step and sampler.

    A team shares out the tokens of text and image.
    """

    def __init__(
        self,
        pipe: Any,
        request: GenerationRequest,
        seed: int,
        inputs: Mapping[str, Tensor],
        team: Team,
    ) -> None:
        """Begin at step 0."""
        self._pipe = pipe
        config = pipe.transformer.config
        generator = torch.Generator("cpu").manual_seed(seed)
        dtype = inputs["prompt_embeds"].dtype
        if request.source is None:
            self.latents, image_ids = pipe.prepare_latents(
                1,
                config.in_channels // 4,
                request.shape.height_px,
                request.shape.width_px,
                dtype,
                pipe.device,
                generator,
            )
        else:
            clean = draw_latents(inputs, generator, shifted=True)
            height, width = clean.shape[-2:]
            image_ids = pipe._prepare_latent_image_ids(  # noqa: SLF001 - as for packing
                1, height // 2, width // 2, pipe.device, dtype
            )
            self.latents = _packed(pipe, clean)
        self._share_out(team, inputs, image_ids)
        self._guidance = None
        if config.guidance_embeds:
            scale = torch.full([1], request.guidance_scale, device=pipe.device, dtype=torch.float32)
            self._guidance = scale.expand(self.latents.shape[0])
        self.generator = None  # no step draws noise
        self.last: Evaluation | None = None
        self.scheduler = copy.deepcopy(pipe.scheduler)  # sampler state belongs to the request
        self.repaint: Repaint | None = None
        if (source := request.source) is None:
            self._timesteps = self._make_timesteps(request.steps)
            self.scheduler.set_begin_index(0)
        else:
            self._timesteps = self._make_timesteps(source.schedule_steps)
            self._skip(source.schedule_steps - request.steps)
            noise = _packed(pipe, draw_like(clean, generator))
            self.latents = self._begin_with(noise, inputs)
        self.step, self.steps = 0, len(self._timesteps)

    def _share_out(self, team: Team, inputs: Mapping[str, Tensor], image_ids: Tensor) -> None:
        """Keep this member's share of what stays the same over the steps."""
        self._pooled = inputs["pooled_prompt_embeds"]
        self._tokens = inputs["prompt_embeds"].shape[1], self.latents.shape[1]  # text, image
        self._team = at_most(team, min(self._tokens))
        self._prompt = share(self._team, inputs["prompt_embeds"], dim=1)
        self._text_ids = share(self._team, inputs["text_ids"], dim=0)
        self._image_ids = share(self._team, image_ids, dim=0)

    def _skip(self, steps: int) -> None:
        """Leave out the first steps of the schedule."""
        first = steps * self.scheduler.order
        self._timesteps = self._timesteps[first:]
        self.scheduler.set_begin_index(first)

    def _begin_with(self, noise: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the source's latents, mixed with noise for the first step that is left."""
        clean = self.latents
        if MASK in inputs:
            channels = inputs[MOMENTS].shape[1] // 2
            mask = _packed(self._pipe, inputs[MASK].repeat(1, channels, 1, 1))
            self.repaint = KeptLatents(mask, clean, noise, self._renoise)
        return self._renoise(clean, noise, self._timesteps[:1])

    def _renoise(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        noisy: Tensor = self.scheduler.scale_noise(clean, timestep, noise)
        return noisy

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
        model, rows, shared = self.ask()
        with attention_across(self._team, [self._tokens]):
            noise = model(**rows, **shared, return_dict=False)[0]
        self.take(gather(self._team, noise, dim=1, total=self._tokens[1]))

    def ask(self) -> Call:
        """Return the transformer's arguments: one row, of this member's tokens."""
        timestep = self._timesteps[self.step].expand(self.latents.shape[0]).to(self.latents.dtype)
        rows = {
            "hidden_states": share(self._team, self.latents, dim=1),
            "timestep": timestep / 1000,
            "pooled_projections": self._pooled,
            "encoder_hidden_states": self._prompt,
        }
        if self._guidance is not None:
            rows["guidance"] = self._guidance
        return Call(
            self._pipe.transformer, rows, {"txt_ids": self._text_ids, "img_ids": self._image_ids}
        )

    def take(self, output: Tensor) -> None:
        """Let the sampler step."""
        t, noise = self._timesteps[self.step], output
        self.last = Evaluation(self.latents, noise, t)
        self.latents = self.scheduler.step(noise, t, self.latents, return_dict=False)[0]
        self.step += 1
        if self.repaint is not None:
            self.latents = self.repaint.blend(self.latents, self._next_timestep)

    @property
    def _next_timestep(self) -> Tensor | None:
        return self._timesteps[self.step] if self.step < self.steps else None


def _packed(pipe: Any, latents: Tensor) -> Tensor:
    """Return latents (1, C, h, w) as tokens of 2x2 cells (1, h/2 * w/2, 4C)."""
    _, channels, height, width = latents.shape
    packed: Tensor = pipe._pack_latents(latents, 1, channels, height, width)  # noqa: SLF001 - the library offers no public packing
    return packed
