"""Beginning with pictures: the image encode, and where a trajectory starts from its result.

Follows the image-to-image and inpaint pipelines of diffusers 0.42 operation by operation, split
where the random numbers begin: the encode hands over the moments of the autoencoder's posterior,
which is the same for all outputs, and each diffuse draws from it with its own generator.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import av
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from engine.types import GenerationRequest, Modality

MOMENTS, MASK, AFFINE = "source_moments", "source_mask", "source_affine"
FRAMES_AT_ONCE = 16  # as AnimateDiff encodes and draws them
_PNG = b"\x89PNG"

Renoise = Callable[[Tensor, Tensor, Tensor], Tensor]  # clean, noise, timestep -> noisy


def encode_source(
    pipe: Any, request: GenerationRequest, inputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the posterior's moments (F, 2C, h, w), how latents are scaled, and the mask if any.

    The mask has one value per latent cell, 1 where the picture is painted anew: (1, 1, h, w).
    """
    frames = _frames(_content(inputs["image"]), request)
    if request.media.modality is Modality.VIDEO:
        pixels = pipe.video_processor.preprocess_video(frames)[0].transpose(0, 1)  # (F, 3, H, W)
    else:
        pixels = pipe.image_processor.preprocess(frames)  # (1, 3, H, W)
    pixels = pixels.to(device=pipe.device, dtype=pipe.vae.dtype)
    chunks = pixels.split(FRAMES_AT_ONCE)
    moments = torch.cat([pipe.vae.encode(chunk).latent_dist.parameters for chunk in chunks])
    config = pipe.vae.config
    affine = [config.get("shift_factor") or 0.0, config.scaling_factor]
    encoded = {MOMENTS: moments, AFFINE: torch.tensor(affine, dtype=torch.float64)}
    if "mask" in inputs:
        encoded[MASK] = _mask_cells(pipe, _content(inputs["mask"]), moments)
    return encoded


def _content(tensor: Tensor) -> bytes:
    return tensor.cpu().numpy().tobytes()


def _frames(content: bytes, request: GenerationRequest) -> list[Image.Image]:
    """Return the source's frames: of a film, or one picture as often as there are frames."""
    if content.startswith(_PNG):
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        return [picture] * request.shape.frames
    with av.open(io.BytesIO(content), "r") as film:
        frames = [frame.to_image() for frame in film.decode(video=0)]
    return frames[: request.shape.frames]


def _mask_cells(pipe: Any, content: bytes, moments: Tensor) -> Tensor:
    processor = VaeImageProcessor(
        vae_scale_factor=pipe.vae_scale_factor,
        do_normalize=False,
        do_binarize=True,
        do_convert_grayscale=True,
    )
    mask = processor.preprocess(Image.open(io.BytesIO(content)).convert("L"))  # (1, 1, H, W)
    cells = torch.nn.functional.interpolate(mask, size=tuple(moments.shape[-2:]))
    return cells.to(device=moments.device, dtype=moments.dtype)


def draw_latents(
    inputs: Mapping[str, Tensor], generator: torch.Generator, *, shifted: bool
) -> Tensor:
    """Draw the source's clean latents (F, C, h, w) from its posterior.

    `shifted` tells whether the family heeds the autoencoder's shift; older ones only scale. They
    lie in memory as the library's pipelines leave them, since kernels round by layout.
    """
    chunks = inputs[MOMENTS].split(FRAMES_AT_ONCE)
    drawn = torch.cat([DiagonalGaussianDistribution(chunk).sample(generator) for chunk in chunks])
    shift, scale = inputs[AFFINE].tolist()
    latents: Tensor = (drawn - shift) * scale if shifted else drawn * scale
    layout = torch.contiguous_format if MASK in inputs else torch.channels_last
    return latents.contiguous(memory_format=layout)


def draw_like(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Draw noise of the latents' shape."""
    noise: Tensor = randn_tensor(
        latents.shape, generator=generator, device=latents.device, dtype=latents.dtype
    )
    return noise


class KeptLatents:
    """A `Repaint`: what the mask keeps, and the noise that it is mixed with until the last step."""

    def __init__(self, mask: Tensor, clean: Tensor, noise: Tensor, renoise: Renoise) -> None:
        """Take the mask, 1 where latents are new, and the source's latents, all of one layout."""
        self._mask, self._clean, self._noise, self._renoise = mask, clean, noise, renoise

    def blend(self, latents: Tensor, timestep: Tensor | None) -> Tensor:
        """Return latents with the kept parts put back, as noisy as at `timestep`; None: clean."""
        kept = self._clean
        if timestep is not None:
            kept = self._renoise(kept, self._noise, torch.tensor([timestep]))
        return (1 - self._mask) * kept + self._mask * latents
