"""The autoencoders: an encoder written by hand, exact, and a decoder that is trained.

A latent is the picture with every 4 x 4 block of pixels folded into 48 channels, nothing else: no
training, no cache, and the denoiser can be trained on `fold(picture)` directly. The stock encoder
of `AutoencoderKL` is given weights that compute just that. Its blocks are made identities (second
convolution zero), its strided convolutions copy pixels, and the last GroupNorm and SiLU are made
linear: each group holds 12 signals, minus their sum and two large constants, so its mean is zero
and its variance constant; a bias pushes SiLU into its linear part.

Larger pictures are shrunk first, by 2 or by 4: strided convolutions that average 2 x 2 pixels come
before the others. The latent of a picture of 256 x 256 is then that of the same picture at 64 x 64,
so one denoiser serves all of them, and the decoder puts the sharp edges back.

The decoder cannot be written by hand: nearest-neighbour upsampling hides from a shared 3 x 3
kernel which of the four copies it is at.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

FOLD = 4
LATENT_CHANNELS = 3 * FOLD * FOLD
WIDTHS: Mapping[int, tuple[int, ...]] = MappingProxyType(
    {1: (16, 48, 64), 2: (16, 16, 48, 64), 4: (16, 16, 16, 48, 64)}
)
"""Channels of each level, by how much a picture is shrunk before it is folded."""
_GROUPS = 4
_ANCHOR = 2048.0
"""Large constant in each group: makes the variance independent of the signals."""
_LIFT = 32.0
"""Bias before SiLU: silu(x + 32) - 32 equals x in float32 for |x| up to 1."""
_SILENT = -30.0
"""Log-variance of the latent distribution: sampling adds nothing."""


def fold(pictures: Tensor, shrink: int = 1) -> Tensor:
    """(B, 3, H, W) pixels to (B, 48, H/(4 shrink), W/(4 shrink)) latents; invertible if not shrunk."""
    small = functional.avg_pool2d(pictures, shrink) if shrink > 1 else pictures
    return _fold_once(_fold_once(small))


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


def build_autoencoder(shrink: int = 1) -> AutoencoderKL:
    """An `AutoencoderKL` with the exact encoder, frozen, and a decoder yet to be trained."""
    levels = len(WIDTHS[shrink])
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=WIDTHS[shrink],
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=_GROUPS,
        sample_size=64 * shrink,
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
    *others, first, second, last = encoder.down_blocks
    for block in others:
        _average_pixels(block.downsamplers[0].conv, 3)
        _let_pass(block, 3)
    _let_pass(first, 3)
    _copy_pixels(first.downsamplers[0].conv, 3)
    _let_pass(second, 12)
    _copy_pixels(second.downsamplers[0].conv, 12)
    _spread_into_groups(last.resnets[0].conv_shortcut)
    _linear_end(encoder)


def _let_pass(block: nn.Module, channels: int) -> None:
    """Where the number of channels changes, the first ones go through the shortcut."""
    shortcut = block.resnets[0].conv_shortcut
    if shortcut is not None:
        _copy(shortcut, channels)


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


def _average_pixels(conv: nn.Conv2d, channels: int) -> None:
    """A strided convolution that averages the 2 x 2 pixels under it."""
    for channel in range(channels):
        conv.weight[channel, channel, :2, :2] = 0.25


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
    return WIDTHS[1][-1] // _GROUPS, LATENT_CHANNELS // _GROUPS


@torch.no_grad()
def start_decoder_from(decoder: nn.Module, trained: nn.Module) -> None:
    """Begin as the decoder for smaller pictures, whose last features are repeated over new pixels.

    What it has is taken over; what is new leaves its input as it is.
    """
    own = decoder.state_dict()
    fitting = {
        name: value
        for name, value in trained.state_dict().items()
        if name in own and own[name].shape == value.shape
    }
    decoder.load_state_dict(fitting, strict=False)
    for name, parameter in decoder.named_parameters():
        if name not in fitting and name.endswith("upsamplers.0.conv.weight"):
            torch.nn.init.dirac_(parameter)
        elif name not in fitting and name.endswith("upsamplers.0.conv.bias"):
            parameter.zero_()


@torch.no_grad()
def _start_decoder(decoder: nn.Module) -> None:
    """Residual blocks start as identities: the first thing learned is the mean colour."""
    for name, parameter in decoder.named_parameters():
        if name.endswith("conv2.weight"):
            parameter.zero_()
