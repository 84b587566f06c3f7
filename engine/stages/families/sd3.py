"""Stable Diffusion 3 and 3.5: MM-DiT with classifier-free guidance in one batch of two.

Follows `StableDiffusion3Pipeline.__call__` of diffusers 0.42 operation by operation, with a source
its image-to-image and inpaint pipelines (but decodes as they all do save inpaint, which forgets the
autoencoder's shift).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    calculate_shift,
    retrieve_timesteps,
)
from torch import Tensor

from engine.stages.attention import attention_across
from engine.stages.base import Call, Evaluation, Repaint
from engine.stages.batching import each
from engine.stages.hooks import output_changed
from engine.stages.source import MASK, KeptLatents, draw_latents, draw_like
from engine.stages.team import Team, at_most, gather, share
from engine.types import GenerationRequest, Source

_NAMES = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)


class StableDiffusion3:
    """The three stages of `StableDiffusion3Pipeline`."""

    def encode(self, pipe: Any, requests: Sequence[GenerationRequest]) -> list[dict[str, Tensor]]:
        """Return prompt and pooled embeddings, negative ones too if guidance is on."""
        embeddings = pipe.encode_prompt(
            prompt=[request.prompt for request in requests],
            prompt_2=None,
            prompt_3=None,
            negative_prompt=[request.negative_prompt or "" for request in requests],
            do_classifier_free_guidance=requests[0].guidance_scale > 1,
            device=pipe.device,
        )
        named = zip(_NAMES, embeddings, strict=True)
        tensors = {name: tensor for name, tensor in named if tensor is not None}
        return each(tensors, len(requests))

    def begin(
        self,
        pipe: Any,
        request: GenerationRequest,
        seed: int,
        inputs: Mapping[str, Tensor],
        team: Team,
    ) -> Sd3Trajectory:
        """Draw the noise and fix the timesteps."""
        return Sd3Trajectory(pipe, request, seed, inputs, team)

    def decode(self, pipe: Any, request: GenerationRequest, latents: Tensor) -> Tensor:
        """Return pixels (1, 3, H, W)."""
        del request
        config = pipe.vae.config
        latents = (latents / config.scaling_factor) + config.shift_factor
        pixels: Tensor = pipe.vae.decode(latents, return_dict=False)[0]
        return pixels


class Sd3Trajectory:
    """One request's latent (1, C, h, w), step and sampler.

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
        self._pipe, self._guidance = pipe, request.guidance_scale
        self._prompt = inputs["prompt_embeds"]  # (B, T, D); B = 2 with guidance
        self._pooled = inputs["pooled_prompt_embeds"]  # (B, P)
        if self._guided:
            self._prompt = torch.cat([inputs["negative_prompt_embeds"], self._prompt], dim=0)
            self._pooled = torch.cat([inputs["negative_pooled_prompt_embeds"], self._pooled], dim=0)
        generator = torch.Generator("cpu").manual_seed(seed)
        if request.source is None:
            self.latents = self._noise(pipe, request, generator)
        else:
            self.latents = draw_latents(inputs, generator, shifted=True)
        height, width = self.latents.shape[-2:]
        patch = pipe.transformer.config.patch_size
        self._tokens = self._prompt.shape[1], (height // patch) * (width // patch)  # text, image
        self._team = at_most(team, min(self._tokens))
        self.generator = None  # no step draws noise
        self.last: Evaluation | None = None
        self.scheduler = copy.deepcopy(pipe.scheduler)  # sampler state belongs to the request
        self.repaint: Repaint | None = None
        if (source := request.source) is None:
            self._timesteps = self._make_timesteps(request.steps)
        else:
            self._timesteps = self._make_timesteps(source.schedule_steps)
            self._skip(source.schedule_steps - request.steps)
            self.latents = self._begin_with(source, inputs, generator)
        self.step, self.steps = 0, len(self._timesteps)

    def _noise(self, pipe: Any, request: GenerationRequest, generator: torch.Generator) -> Tensor:
        noise: Tensor = pipe.prepare_latents(
            1,
            pipe.transformer.config.in_channels,
            request.shape.height_px,
            request.shape.width_px,
            self._prompt.dtype,
            pipe.device,
            generator,
        )
        return noise

    def _skip(self, steps: int) -> None:
        """Leave out the first steps of the schedule."""
        first = steps * self.scheduler.order
        self._timesteps = self._timesteps[first:]
        self.scheduler.set_begin_index(first)

    def _begin_with(
        self, source: Source, inputs: Mapping[str, Tensor], generator: torch.Generator
    ) -> Tensor:
        """Return the source's latents, mixed with noise for the first step that is left."""
        clean = self.latents
        noise = draw_like(clean, generator)
        if source.mask is not None:
            self.repaint = KeptLatents(inputs[MASK], clean, noise, self._renoise)
        if source.mask is not None and source.strength == 1.0:
            return noise
        return self._renoise(clean, noise, self._timesteps[:1])

    def _renoise(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        noisy: Tensor = self.scheduler.scale_noise(clean, timestep, noise)
        return noisy

    @property
    def _guided(self) -> bool:
        return self._guidance > 1

    def _make_timesteps(self, steps: int) -> Tensor:
        config, shift = self.scheduler.config, {}
        if config.get("use_dynamic_shifting", None):
            shift["mu"] = calculate_shift(
                self._tokens[1],
                config.get("base_image_seq_len", 256),
                config.get("max_image_seq_len", 4096),
                config.get("base_shift", 0.5),
                config.get("max_shift", 1.16),
            )
        timesteps: Tensor = retrieve_timesteps(self.scheduler, steps, self._pipe.device, **shift)[0]
        return timesteps

    def advance(self) -> None:
        """Do one denoise step."""
        model, rows, _shared = self.ask()
        with self._tokens_shared():
            noise = model(**rows, return_dict=False)[0]
        self.take(noise)

    def ask(self) -> Call:
        """Return the transformer's arguments: a row per branch of guidance."""
        model_input = torch.cat([self.latents] * 2) if self._guided else self.latents
        rows = {
            "hidden_states": model_input,
            "timestep": self._timesteps[self.step].expand(model_input.shape[0]),
            "encoder_hidden_states": self._prompt,
            "pooled_projections": self._pooled,
        }
        return Call(self._pipe.transformer, rows, {})

    def take(self, output: Tensor) -> None:
        """Apply guidance and let the sampler step."""
        t, noise = self._timesteps[self.step], output
        if self._guided:
            unconditional, conditional = noise.chunk(2)
            noise = unconditional + self._guidance * (conditional - unconditional)
        self.last = Evaluation(self.latents, noise, t)
        self.latents = self.scheduler.step(noise, t, self.latents, return_dict=False)[0]
        self.step += 1
        if self.repaint is not None:
            self.latents = self.repaint.blend(self.latents, self._next_timestep)

    @property
    def _next_timestep(self) -> Tensor | None:
        return self._timesteps[self.step] if self.step < self.steps else None

    @contextmanager
    def _tokens_shared(self) -> Iterator[None]:
        """Let each member work on its tokens from their embedding on, until they are patches.

        Some layers of SD3.5 also let the image attend to itself.
        """
        team, model = self._team, self._pipe.transformer
        with ExitStack() as stack:
            for name in ("pos_embed", "context_embedder") if team.size > 1 else ():
                embedder = model.get_submodule(name)
                stack.enter_context(output_changed(embedder, lambda out: share(team, out, dim=1)))
            if team.size > 1:
                whole = partial(gather, team, dim=1, total=self._tokens[1])
                stack.enter_context(output_changed(model.proj_out, whole))
            stack.enter_context(attention_across(team, [self._tokens, self._tokens[1:]]))
            yield
