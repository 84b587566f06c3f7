"""The autoencoder: an encoder written by hand, exact, and a decoder that is trained.

A latent is the picture with every 4 x 4 block of pixels folded into 48 channels, nothing else: no
training, no cache, and the denoiser can be trained on `fold(picture)` directly. The stock encoder
of `AutoencoderKL` is given weights that compute just that. Its blocks are made identities (second
convolution zero), its strided convolutions copy pixels, and the last GroupNorm and SiLU are made
linear: each group holds 12 signals, minus their sum and two large constants, so its mean is zero
and its variance constant; a bias pushes SiLU into its linear part.

The decoder cannot be written by hand: nearest-neighbour upsampling hides from a shared 3 x 3
kernel which of the four copies it is at.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

FOLD = 4
LATENT_CHANNELS = 3 * FOLD * FOLD
_WIDTHS = (16, 48, 64)
_GROUPS = 4
_ANCHOR = 2048.0
"""Large constant in each group: makes the variance independent of the signals."""
_LIFT = 32.0
"""Bias before SiLU: silu(x + 32) - 32 equals x in float32 for |x| up to 1."""
_SILENT = -30.0
"""Log-variance of the latent distribution: sampling adds nothing."""


def fold(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) pixels to (B, 48, H/4, W/4) latents, exactly and invertibly."""
    return _fold_once(_fold_once(pictures))


def unfold(latents: Tensor) -> Tensor:
    """The inverse of `fold`: what a perfect decoder would give."""
    return _unfold_once(_unfold_once(latents))


def _fold_once(x: Tensor) -> Tensor:
    """2 x 2 pixels become channels, pixel-major: channel = pixel * C + c, as `_copy_pixels`."""
    parts = [x[..., row::2, column::2] for row in (0, 1) for column in (0, 1)]
    return torch.cat(parts, dim=1)


def _unfold_once(x: Tensor) -> Tensor:
    channels = x.shape[1] // 4
    out = x.new_empty(x.shape[0], channels, 2 * x.shape[2], 2 * x.shape[3])
    for pixel, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        out[..., row::2, column::2] = x[:, pixel * channels : (pixel + 1) * channels]
    return out


def build_autoencoder() -> AutoencoderKL:
    """An `AutoencoderKL` with the exact encoder, frozen, and a decoder yet to be trained."""
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=_WIDTHS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=_GROUPS,
        sample_size=64,
        scaling_factor=1.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        force_upcast=False,
    )
    write_encoder(model.encoder)
    model.encoder.requires_grad_(requires_grad=False)
    _start_decoder(model.decoder)
    return model


@torch.no_grad()
def write_encoder(encoder: nn.Module) -> None:
    """Set every weight of a stock encoder so that it computes `fold`."""
    for name, parameter in encoder.named_parameters():
        if "norm" not in name:
            parameter.zero_()
    _copy(encoder.conv_in, 3)
    first, second, third = encoder.down_blocks
    _copy_pixels(first.downsamplers[0].conv, 3)
    _copy(second.resnets[0].conv_shortcut, 12)
    _copy_pixels(second.downsamplers[0].conv, 12)
    _spread_into_groups(third.resnets[0].conv_shortcut)
    _linear_end(encoder)


def _copy(conv: nn.Conv2d, channels: int) -> None:
    """The first channels pass through unchanged, the rest are zero."""
    middle = conv.kernel_size[0] // 2
    for channel in range(channels):
        conv.weight[channel, channel, middle, middle] = 1


def _copy_pixels(conv: nn.Conv2d, channels: int) -> None:
    """A strided convolution that stacks the 2 x 2 pixels under it."""
    for pixel, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        for channel in range(channels):
            conv.weight[pixel * channels + channel, channel, row, column] = 1


def _spread_into_groups(conv: nn.Conv2d) -> None:
    """Lay out each group as signals, minus their sum, plus and minus the anchor."""
    size, signals = _group_sizes()
    for group in range(_GROUPS):
        start = group * size
        for index in range(signals):
            conv.weight[start + index, group * signals + index] = 1
            conv.weight[start + signals, group * signals + index] = -1
        conv.bias[start + signals + 1] = _ANCHOR
        conv.bias[start + signals + 2] = -_ANCHOR


def _linear_end(encoder: nn.Module) -> None:
    """Undo the GroupNorm's scale, pass SiLU where it is linear, gather the signals."""
    size, signals = _group_sizes()
    deviation = _ANCHOR * (2 / size) ** 0.5
    encoder.conv_norm_out.weight.fill_(deviation)
    encoder.conv_norm_out.bias.fill_(_LIFT)
    out = encoder.conv_out
    for channel in range(LATENT_CHANNELS):
        source = channel // signals * size + channel % signals
        out.weight[channel, source, 1, 1] = 1
    out.bias[:LATENT_CHANNELS] = -_LIFT
    out.bias[LATENT_CHANNELS:] = _SILENT


def _group_sizes() -> tuple[int, int]:
    """Channels in a group of the last GroupNorm, and how many of them are signals."""
    return _WIDTHS[-1] // _GROUPS, LATENT_CHANNELS // _GROUPS


@torch.no_grad()
def _start_decoder(decoder: nn.Module) -> None:
    """Residual blocks start as identities: the first thing learned is the mean colour."""
    for name, parameter in decoder.named_parameters():
        if name.endswith("conv2.weight"):
            parameter.zero_()
