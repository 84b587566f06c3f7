"""Stable Diffusion 1 and 2, and AnimateDiff: UNet with cross-attention and guidance.

Follows `StableDiffusionPipeline.__call__` and `AnimateDiffPipeline.__call__` of diffusers 0.42
operation by operation, with a source their image-to-image, inpaint and video-to-video pipelines;
the safety checker is not part of any stage.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from engine.stages.base import Call, Evaluation, Repaint
from engine.stages.batching import each
from engine.stages.families.frames import branches_and_frames, frames_shared
from engine.stages.source import MASK, KeptLatents, draw_latents, draw_like
from engine.stages.team import Team, gather, share, sizes
from engine.types import GenerationRequest, Source

_FRAMES = 2  # of (B, C, F, h, w)


class StableDiffusion:
    """The three stages of `StableDiffusionPipeline`."""

    def encode(self, pipe: Any, requests: Sequence[GenerationRequest]) -> list[dict[str, Tensor]]:
        """Return prompt embeddings, negative ones too if guidance is on."""
        prompt, negative = pipe.encode_prompt(
            [request.prompt for request in requests],
            pipe.device,
            1,
            requests[0].guidance_scale > 1,
            [request.negative_prompt or "" for request in requests],
        )
        embeddings = {"prompt_embeds": prompt}
        if negative is not None:
            embeddings["negative_prompt_embeds"] = negative
        return each(embeddings, len(requests))

    def begin(
        self,
        pipe: Any,
        request: GenerationRequest,
        seed: int,
        inputs: Mapping[str, Tensor],
        team: Team,
    ) -> SdTrajectory:
        """Draw the noise and fix the timesteps."""
        return SdTrajectory(pipe, request, seed, inputs, team)

    def decode(self, pipe: Any, request: GenerationRequest, latents: Tensor) -> Tensor:
        """Return pixels (1, 3, H, W)."""
        del request
        pixels: Tensor = pipe.vae.decode(
            latents / pipe.vae.config.scaling_factor, return_dict=False
        )[0]
        return pixels


class AnimateDiff(StableDiffusion):
    """The three stages of `AnimateDiffPipeline`: the same, with a frame axis."""

    def begin(
        self,
        pipe: Any,
        request: GenerationRequest,
        seed: int,
        inputs: Mapping[str, Tensor],
        team: Team,
    ) -> SdTrajectory:
        """Draw independent noise for every frame; each frame sees the same prompt."""
        return SdTrajectory(pipe, request, seed, inputs, team, frames=request.shape.frames)

    def decode(self, pipe: Any, request: GenerationRequest, latents: Tensor) -> Tensor:
        """Return pixels (1, 3, F, H, W)."""
        del request
        pixels: Tensor = pipe.decode_latents(latents)
        return pixels


class SdTrajectory:
    """One request's latent (1, C, h, w), or (1, C, F, h, w) with frames; step and sampler.

    A team shares out the two branches of guidance, and the frames of each.
    """

    def __init__(
        self,
        pipe: Any,
        request: GenerationRequest,
        seed: int,
        inputs: Mapping[str, Tensor],
        team: Team,
        *,
        frames: int | None = None,
    ) -> None:
        """Begin at step 0."""
        self._unet, self._guidance = pipe.unet, request.guidance_scale
        branches = 2 if self._guided else 1
        self._branch, self._crew = branches_and_frames(team, branches, frames or 1)
        self._prompt = inputs["prompt_embeds"]  # (B, T, D); B = 2 with guidance
        if self._guided:
            self._prompt = torch.cat([inputs["negative_prompt_embeds"], self._prompt])
        self._prompt = share(self._branch, self._prompt, dim=0)
        if frames is not None:
            own_frames = sizes(frames, self._crew.size)[self._crew.rank]
            self._prompt = self._prompt.repeat_interleave(repeats=own_frames, dim=0)
        self.scheduler = copy.deepcopy(pipe.scheduler)  # sampler state belongs to the request
        source = request.source
        schedule_steps = request.steps if source is None else source.schedule_steps
        self._timesteps = retrieve_timesteps(self.scheduler, schedule_steps, pipe.device)[0]
        self.generator = torch.Generator("cpu").manual_seed(seed)
        self.repaint: Repaint | None = None
        if source is None:
            self.latents = self._noise(pipe, request, frames) * self.scheduler.init_noise_sigma
        else:
            self._skip(schedule_steps - request.steps)
            self.latents = self._begin_with(source, inputs, is_film=frames is not None)
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        self._step_extras = {"generator": self.generator} if takes_generator else {}
        self.step, self.steps = 0, len(self._timesteps)
        self.last: Evaluation | None = None

    def _noise(self, pipe: Any, request: GenerationRequest, frames: int | None) -> Tensor:
        cells = (
            request.shape.height_px // pipe.vae_scale_factor,
            request.shape.width_px // pipe.vae_scale_factor,
        )
        noise: Tensor = randn_tensor(
            (1, pipe.unet.config.in_channels, *(() if frames is None else (frames,)), *cells),
            generator=self.generator,
            device=pipe.device,
            dtype=self._prompt.dtype,
        )
        return noise

    def _skip(self, steps: int) -> None:
        """Leave out the first steps of the schedule."""
        first = steps * self.scheduler.order
        self._timesteps = self._timesteps[first:]
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(first)

    def _begin_with(self, source: Source, inputs: Mapping[str, Tensor], *, is_film: bool) -> Tensor:
        """Return the source's latents, mixed with noise for the first step that is left."""
        clean = draw_latents(inputs, self.generator, shifted=False)
        if is_film:
            clean = clean.unsqueeze(0).contiguous()  # (1, F, C, h, w)
        noise = draw_like(clean, self.generator)
        if source.mask is not None:
            draw_like(clean, self.generator)  # the library encodes the masked picture here
            self.repaint = KeptLatents(inputs[MASK], clean, noise, self.scheduler.add_noise)
        latents: Tensor = self.scheduler.add_noise(clean, noise, self._timesteps[:1])
        if source.mask is not None and source.strength == 1.0:
            latents = noise * self.scheduler.init_noise_sigma
        return latents.permute(0, 2, 1, 3, 4) if is_film else latents

    @property
    def _guided(self) -> bool:
        return self._guidance > 1

    def advance(self) -> None:
        """Do one denoise step."""
        self.take(self._predict(self.ask()))

    def ask(self) -> Call:
        """Return the UNet's arguments: a row per branch of guidance."""
        t = self._timesteps[self.step]
        model_input = torch.cat([self.latents] * 2) if self._guided else self.latents
        rows = {
            "sample": self.scheduler.scale_model_input(model_input, t),
            "timestep": t.expand(model_input.shape[0]),
            "encoder_hidden_states": self._prompt,
        }
        return Call(self._unet, rows, {})

    def take(self, output: Tensor) -> None:
        """Apply guidance and let the sampler step."""
        t, noise = self._timesteps[self.step], output
        if self._guided:
            unconditional, conditional = noise.chunk(2)
            noise = unconditional + self._guidance * (conditional - unconditional)
        self.last = Evaluation(self.latents, noise, t)
        self.latents = self.scheduler.step(
            noise, t, self.latents, **self._step_extras, return_dict=False
        )[0]
        self.step += 1
        if self.repaint is not None:
            self.latents = self.repaint.blend(self.latents, self._next_timestep)

    @property
    def _next_timestep(self) -> Tensor | None:
        return self._timesteps[self.step] if self.step < self.steps else None

    def _predict(self, call: Call) -> Tensor:
        """Return the noise of both branches: each member has the UNet predict its part."""
        whole, t, prompt = call.rows.values()
        mine = share(self._branch, whole, dim=0)  # (B, C, h, w) or (B, C, F, h, w)
        frames = mine.shape[_FRAMES]  # of images, rows; those are not shared
        mine = share(self._crew, mine, dim=_FRAMES)
        with frames_shared(self._unet, self._crew, frames):
            noise = self._unet(mine, t[0], encoder_hidden_states=prompt, return_dict=False)[0]
        noise = gather(self._crew, noise, dim=_FRAMES, total=frames)
        return gather(self._branch, noise, dim=0, total=call.row_count)
