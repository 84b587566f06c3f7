"""The networks of the denoiser: a small Stable-Diffusion-class UNet and its text encoder.

The UNet predicts the clean latent (x-prediction) from z = (1 - s) x + s n, told 1000 s as the
timestep. Text enters at the half-resolution level only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextConfig, CLIPTextModel

from models.training.autoencoder import LATENT_CHANNELS
from models.training.tokens import MAX_TOKENS

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

TEXT_WIDTH = 128


def build_unet() -> UNet2DConditionModel:
    """About 4 M parameters; the last convolution starts at zero."""
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
        use_linear_projection=True,
    )
    torch.nn.init.zeros_(unet.conv_out.weight)
    # Explicit matrix products: the backward pass of fused attention is slow on a CPU.
    unet.set_attn_processor(AttnProcessor())
    return unet


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two small layers, trained from scratch together with the UNet."""
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            intermediate_size=3 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.set_attn_implementation("eager")
    return model
