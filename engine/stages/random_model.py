"""Writes small diffusers folders with random weights: real architectures, meaningless pictures.

For tests, and to try the serving path of a family without its weights. Run as
`python -m engine.stages.random_model FOLDER --family NAME --seed N`.
"""

from __future__ import annotations

import argparse
import json
import string
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    MotionAdapter,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNetMotionModel,
)
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

WIDTH = 32  # of text encoders and attention heads together
WORDS = ("a", "the", "on", "of", "red", "green", "blue", "circle", "square", "star", "background")


def clip_tokenizer(words: Iterable[str] = WORDS, max_length: int = 77) -> CLIPTokenizer:
    """Return a byte-level BPE tokenizer that knows `words` whole and spells out all others."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(a + "</w>" for a in alphabet)]
    merges: list[tuple[str, str]] = []
    for word in words:
        spelled = [*word[:-1], word[-1] + "</w>"]
        while len(spelled) > 1:
            merges.append((spelled[0], spelled[1]))
            spelled = [spelled[0] + spelled[1], *spelled[2:]]
            pieces.append(spelled[0])
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(
        vocab=vocabulary, merges=list(dict.fromkeys(merges)), model_max_length=max_length
    )


def t5_tokenizer(words: Iterable[str] = WORDS) -> T5Tokenizer:
    """Return a unigram tokenizer over `words` and single characters."""
    scores = {"<pad>": 0.0, "</s>": 0.0, "<unk>": -20.0}
    scores |= {f"▁{word}": -2.0 for word in words} | {"▁": -5.0}
    scores |= dict.fromkeys(string.printable.strip(), -10.0)
    return T5Tokenizer(
        vocab=list(scores.items()),
        extra_ids=0,
        additional_special_tokens=[],
        model_max_length=512,
    )


def _clip_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _t5_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=8,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return T5EncoderModel(config).eval()


def _vae(latent_channels: int, blocks: int = 4) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=latent_channels,
        norm_num_groups=8,
        scaling_factor=0.5,
        shift_factor=0.1,
    ).eval()


def new_flux() -> FluxPipeline:
    """Return a Flux pipeline of about 0.5 M weights."""
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=True,
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_vae(latent_channels=4),
        text_encoder=CLIPTextModel(_clip_config(clip)).eval(),
        tokenizer=clip,
        text_encoder_2=_t5_encoder(t5),
        tokenizer_2=t5,
        transformer=transformer.eval(),
    )


def new_sd3() -> StableDiffusion3Pipeline:
    """Return a Stable Diffusion 3 pipeline of about 0.5 M weights."""
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        caption_projection_dim=64,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=64,
    )
    return StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(latent_channels=4),
        text_encoder=CLIPTextModelWithProjection(_clip_config(clip)).eval(),
        tokenizer=clip,
        text_encoder_2=CLIPTextModelWithProjection(_clip_config(clip)).eval(),
        tokenizer_2=clip,
        text_encoder_3=T5EncoderModel(_wide_t5(t5)).eval(),
        tokenizer_3=t5,
        transformer=transformer.eval(),
    )


def _wide_t5(tokenizer: T5Tokenizer) -> T5Config:
    """SD3 pads the two CLIP embeddings side by side to T5's width."""
    config = _t5_encoder(tokenizer).config
    config.d_model = 2 * WIDTH
    return config


def new_sd() -> StableDiffusionPipeline:
    """Return a Stable Diffusion pipeline of about 0.5 M weights."""
    clip = clip_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=_vae(latent_channels=4),
        text_encoder=CLIPTextModel(_clip_config(clip)).eval(),
        tokenizer=clip,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def new_animatediff() -> AnimateDiffPipeline:
    """Return an AnimateDiff pipeline of about 0.8 M weights."""
    still = new_sd()
    adapter = MotionAdapter(
        block_out_channels=(32, 64),
        motion_layers_per_block=1,
        motion_num_attention_heads=4,
        motion_norm_num_groups=8,
        use_motion_mid_block=False,
    )
    return AnimateDiffPipeline(
        vae=still.vae,
        text_encoder=still.text_encoder,
        tokenizer=still.tokenizer,
        unet=UNetMotionModel.from_unet2d(still.unet, adapter).eval(),
        motion_adapter=adapter.eval(),
        scheduler=still.scheduler,
    )


MAKERS: dict[str, Callable[[], Any]] = {
    "flux": new_flux,
    "sd3": new_sd3,
    "sd": new_sd,
    "animatediff": new_animatediff,
}


def write_model(folder: Path, family: str, seed: int) -> None:
    """Write a folder that `trident serve --model` takes; overwrites what is there."""
    torch.manual_seed(seed)
    MAKERS[family]().save_pretrained(folder)
    card = {
        "defaults": {"width_px": 64, "height_px": 64, "frames": 9, "steps": 4},
        "limits": {"max_pixels": 512 * 512},
        "description": f"Random {family} weights (seed {seed}): real architecture, no meaning.",
    }
    (folder / "trident.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write one folder from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", choices=sorted(MAKERS), default="flux")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_model(args.folder, args.family, args.seed)


if __name__ == "__main__":
    main()
