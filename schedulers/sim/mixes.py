"""What each of the four pipelines is asked for: its usual steps and sizes, and the published rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from engine.types import ModelId

SD3: Final = ModelId("sd3")
FLUX: Final = ModelId("flux1")
COG: Final = ModelId("cogvideox1.5-5b")
HUNYUAN: Final = ModelId("hunyuanvideo")


class Size(msgspec.Struct, frozen=True):
    """What is asked for, in pixels and frames."""

    height: int
    width: int
    frames: int = 1


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """What one pipeline is asked for: its usual steps and sizes, the smallest first.

    `rate_per_gpu` is the rate of the published trace per GPU; None where none is known.
    `three` and `three_steps` are the short, middle and long class of `five-phase`.
    """

    steps: int
    sizes: tuple[Size, ...]
    rate_per_gpu: float | None
    three: tuple[Size, Size, Size]
    three_steps: int


def _squares(*edges: int) -> tuple[Size, ...]:
    return tuple(Size(edge, edge) for edge in edges)


MIXES: Final[Mapping[ModelId, Mix]] = {
    SD3: Mix(
        steps=20,
        sizes=_squares(128, 256, 512, 1024, 1536),
        rate_per_gpu=None,
        three=(Size(512, 512), Size(1024, 1024), Size(1536, 1536)),
        three_steps=20,
    ),
    FLUX: Mix(
        steps=28,
        sizes=_squares(128, 256, 512, 1024, 2048),
        rate_per_gpu=2.625 / 128,
        three=(Size(512, 512), Size(1024, 1024), Size(2048, 2048)),
        three_steps=28,
    ),
    COG: Mix(
        steps=6,
        sizes=tuple(Size(768, width, n) for width in (432, 1360) for n in (17, 33, 65, 81)),
        rate_per_gpu=1.5 / 128,
        three=(Size(768, 432, 33), Size(768, 432, 81), Size(768, 1360, 81)),
        three_steps=22,
    ),
    HUNYUAN: Mix(
        steps=4,
        sizes=(
            *(Size(960, 544, frames) for frames in (17, 33, 65, 129)),
            *(Size(720, 1280, frames) for frames in (17, 33, 65, 129)),
        ),
        rate_per_gpu=0.7114 / 128,  # the published 1.0/s asks for more than 128 GPUs have
        # 720x1280x129 as the long class would ask for 1.3 times what 8 GPUs have over the hour.
        three=(Size(960, 544, 17), Size(960, 544, 65), Size(960, 544, 129)),
        three_steps=12,
    ),
}
