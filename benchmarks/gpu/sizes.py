"""Architectures of the size that people serve, with random weights: nothing is downloaded.

Built on the meta device from published configurations, then given memory and random bfloat16
numbers where they run. `tiny` has the same classes with few and narrow layers, so that the checks
themselves can be checked on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLWan,
    CogVideoXTransformer3DModel,
    FluxTransformer2DModel,
    HunyuanVideoTransformer3DModel,
    SD3Transformer2DModel,
    WanTransformer3DModel,
)
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """What is drawn: pixels and frames."""

    width: int
    height: int
    frames: int = 1

    def __str__(self) -> str:
        """Return `WxH` or `WxHxF`."""
        plain = f"{self.width}x{self.height}"
        return plain if self.frames == 1 else f"{plain}x{self.frames}"


@dataclass(frozen=True)
class Architecture:
    """One model: its three stages, and what a denoise step and a decode are called with.

    `steps_inputs(size, batch, device)` are the arguments of one step, `latents(size, device)` those
    of the decoder. `text_tokens` is the length of a prompt.
    """

    name: str
    denoiser: Callable[[], nn.Module]
    decoder: Callable[[], nn.Module]
    encoder: Callable[[], nn.Module]
    step_inputs: Callable[[Size, int, torch.device], Inputs]
    latents: Callable[[Size, torch.device], Tensor]
    sizes: tuple[Size, ...]
    text_tokens: int
    vocabulary: int


def materialise(make: Callable[[], nn.Module], device: torch.device) -> nn.Module:
    """Build a module without memory, then give it random numbers on a device."""
    with torch.device("meta"):
        module = make()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    module = module.to(dtype).to_empty(device=device).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.02)
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.normal_(std=0.02)
            else:
                buffer.zero_()
    return module


def weight_bytes(module: nn.Module) -> int:
    """Return what a module's numbers take."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _noise(shape: tuple[int, ...], device: torch.device) -> Tensor:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.randn(shape, device=device, dtype=dtype)


def _t5(width: int, layers: int, feed_forward: int, heads: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        return T5EncoderModel(
            T5Config(
                vocab_size=32128,
                d_model=width,
                d_kv=64,
                d_ff=feed_forward,
                num_layers=layers,
                num_heads=heads,
                feed_forward_proj="gated-gelu",
            )
        )

    return make


def architectures(*, tiny: bool) -> tuple[Architecture, ...]:
    """Return all five models, or their tiny twins."""
    return (_sd3(tiny), _flux(tiny), _cogvideox(tiny), _hunyuan(tiny), _wan(tiny))


def _text(tiny: bool) -> tuple[int, Callable[[], nn.Module]]:  # noqa: FBT001 - one switch, everywhere the same
    """Return the width of T5-XXL's embeddings and the encoder, or a tiny one's."""
    return (32, _t5(32, 1, 64, 1)) if tiny else (4096, _t5(4096, 24, 10240, 64))


def _image_vae(tiny: bool) -> Callable[[], nn.Module]:  # noqa: FBT001
    widths = (8, 8, 8, 8) if tiny else (128, 256, 512, 512)
    config: Mapping[str, Any] = {
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1 if tiny else 2,
        "latent_channels": 16,
        "norm_num_groups": 4 if tiny else 32,
    }
    return lambda: AutoencoderKL(**config)


def _image_latents(size: Size, device: torch.device) -> Tensor:
    return _noise((1, 16, size.height // 8, size.width // 8), device)


def _sd3(tiny: bool) -> Architecture:  # noqa: FBT001
    text, encoder = _text(tiny)
    layers, heads, dim = (1, 2, 8) if tiny else (24, 24, 64)

    def inputs(size: Size, batch: int, device: torch.device) -> Inputs:
        return {
            "hidden_states": _noise((batch, 16, size.height // 8, size.width // 8), device),
            "encoder_hidden_states": _noise((batch, 16 if tiny else 333, text), device),
            "pooled_projections": _noise((batch, 16 if tiny else 2048), device),
            "timestep": torch.full((batch,), 500.0, device=device),
        }

    return Architecture(
        name="sd3",
        denoiser=lambda: SD3Transformer2DModel(
            sample_size=128,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=layers,
            attention_head_dim=dim,
            num_attention_heads=heads,
            caption_projection_dim=heads * dim,
            joint_attention_dim=text,
            pooled_projection_dim=16 if tiny else 2048,
            pos_embed_max_size=192,
        ),
        decoder=_image_vae(tiny),
        encoder=encoder,
        step_inputs=inputs,
        latents=_image_latents,
        sizes=(Size(64, 64),) if tiny else (Size(512, 512), Size(1024, 1024), Size(1536, 1536)),
        text_tokens=8 if tiny else 256,
        vocabulary=32128,
    )


def _flux(tiny: bool) -> Architecture:  # noqa: FBT001
    text, encoder = _text(tiny)
    layers, single, heads, dim = (1, 1, 2, 16) if tiny else (19, 38, 24, 128)
    axes, words = ((4, 6, 6), 8) if tiny else ((16, 56, 56), 512)

    def inputs(size: Size, batch: int, device: torch.device) -> Inputs:
        rows, columns = size.height // 16, size.width // 16
        places = torch.zeros(rows * columns, 3, device=device)
        places[:, 1] = torch.arange(rows, device=device).repeat_interleave(columns)
        places[:, 2] = torch.arange(columns, device=device).repeat(rows)
        return {
            "hidden_states": _noise((batch, rows * columns, 64), device),
            "encoder_hidden_states": _noise((batch, words, text), device),
            "pooled_projections": _noise((batch, 768), device),
            "timestep": torch.full((batch,), 0.5, device=device),
            "img_ids": places,
            "txt_ids": torch.zeros(words, 3, device=device),
            "guidance": torch.full((batch,), 3.5, device=device),
        }

    return Architecture(
        name="flux1",
        denoiser=lambda: FluxTransformer2DModel(
            in_channels=64,
            num_layers=layers,
            num_single_layers=single,
            attention_head_dim=dim,
            num_attention_heads=heads,
            joint_attention_dim=text,
            pooled_projection_dim=768,
            axes_dims_rope=axes,
            guidance_embeds=True,
        ),
        decoder=_image_vae(tiny),
        encoder=encoder,
        step_inputs=inputs,
        latents=_image_latents,
        sizes=(Size(64, 64),) if tiny else (Size(512, 512), Size(1024, 1024), Size(2048, 2048)),
        text_tokens=words,
        vocabulary=32128,
    )


def _latent_frames(size: Size) -> int:
    return (size.frames - 1) // 4 + 1


def _video_latents(size: Size, device: torch.device) -> Tensor:
    return _noise((1, 16, _latent_frames(size), size.height // 8, size.width // 8), device)


def _cogvideox(tiny: bool) -> Architecture:  # noqa: FBT001
    text, encoder = _text(tiny)
    layers, heads, dim = (1, 2, 16) if tiny else (42, 48, 64)
    words = 8 if tiny else 226

    def inputs(size: Size, batch: int, device: torch.device) -> Inputs:
        frames = _latent_frames(size) + _latent_frames(size) % 2  # patches of two frames
        rows, columns = size.height // 8, size.width // 8
        tokens = (frames // 2) * (rows // 2) * (columns // 2)
        return {
            "hidden_states": _noise((batch, frames, 16, rows, columns), device),
            "encoder_hidden_states": _noise((batch, words, text), device),
            "timestep": torch.full((batch,), 500, device=device),
            "image_rotary_emb": tuple(torch.ones(tokens, dim, device=device) for _ in range(2)),
        }

    widths = (8, 8, 8, 8) if tiny else (128, 256, 256, 512)
    return Architecture(
        name="cogvideox1.5",
        denoiser=lambda: CogVideoXTransformer3DModel(
            num_attention_heads=heads,
            attention_head_dim=dim,
            in_channels=16,
            out_channels=16,
            time_embed_dim=32 if tiny else 512,
            text_embed_dim=text,
            num_layers=layers,
            sample_width=170,
            sample_height=96,
            sample_frames=81,
            patch_size=2,
            patch_size_t=2,
            patch_bias=False,
            max_text_seq_length=words,
            use_rotary_positional_embeddings=True,
        ),
        decoder=lambda: AutoencoderKLCogVideoX(
            block_out_channels=widths,
            layers_per_block=1 if tiny else 3,
            latent_channels=16,
            norm_num_groups=4 if tiny else 32,
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
        ),
        encoder=encoder,
        step_inputs=inputs,
        latents=_video_latents,
        sizes=(Size(64, 64, 9),) if tiny else (Size(768, 432, 17), Size(768, 432, 49)),
        text_tokens=words,
        vocabulary=32128,
    )


def _hunyuan(tiny: bool) -> Architecture:  # noqa: FBT001
    text, encoder = _text(tiny)
    layers, single, heads, dim = (1, 1, 2, 16) if tiny else (20, 40, 24, 128)
    words = 8 if tiny else 256

    def inputs(size: Size, batch: int, device: torch.device) -> Inputs:
        frames, rows, columns = _latent_frames(size), size.height // 8, size.width // 8
        return {
            "hidden_states": _noise((batch, 16, frames, rows, columns), device),
            "timestep": torch.full((batch,), 500, device=device),
            "encoder_hidden_states": _noise((batch, words, text), device),
            "encoder_attention_mask": torch.ones(batch, words, device=device, dtype=torch.bool),
            "pooled_projections": _noise((batch, 768), device),
            "guidance": torch.full((batch,), 6000.0, device=device),
        }

    widths = (8, 8, 8, 8) if tiny else (128, 256, 512, 512)
    return Architecture(
        name="hunyuanvideo",
        denoiser=lambda: HunyuanVideoTransformer3DModel(
            num_attention_heads=heads,
            attention_head_dim=dim,
            num_layers=layers,
            num_single_layers=single,
            num_refiner_layers=1 if tiny else 2,
            text_embed_dim=text,
            pooled_projection_dim=768,
            rope_axes_dim=(4, 6, 6) if tiny else (16, 56, 56),
        ),
        decoder=lambda: AutoencoderKLHunyuanVideo(
            block_out_channels=widths,
            layers_per_block=1 if tiny else 2,
            norm_num_groups=4 if tiny else 32,
        ),
        encoder=encoder,
        step_inputs=inputs,
        latents=_video_latents,
        sizes=(Size(64, 64, 9),) if tiny else (Size(960, 544, 17), Size(960, 544, 65)),
        text_tokens=words,
        vocabulary=32128,
    )


def _wan(tiny: bool) -> Architecture:  # noqa: FBT001
    text, encoder = _text(tiny)
    layers, heads, dim = (1, 2, 16) if tiny else (40, 40, 128)
    words = 8 if tiny else 512

    def inputs(size: Size, batch: int, device: torch.device) -> Inputs:
        frames, rows, columns = _latent_frames(size), size.height // 8, size.width // 8
        return {
            "hidden_states": _noise((batch, 16, frames, rows, columns), device),
            "timestep": torch.full((batch,), 500, device=device),
            "encoder_hidden_states": _noise((batch, words, text), device),
        }

    return Architecture(
        name="wan2.1",
        denoiser=lambda: WanTransformer3DModel(
            num_attention_heads=heads,
            attention_head_dim=dim,
            text_dim=text,
            freq_dim=16 if tiny else 256,
            ffn_dim=32 if tiny else 13824,
            num_layers=layers,
        ),
        decoder=lambda: AutoencoderKLWan(
            base_dim=8 if tiny else 96, num_res_blocks=1 if tiny else 2
        ),
        encoder=encoder,
        step_inputs=inputs,
        latents=_video_latents,
        sizes=(Size(64, 64, 9),) if tiny else (Size(832, 480, 17), Size(832, 480, 49)),
        text_tokens=words,
        vocabulary=32128,
    )
