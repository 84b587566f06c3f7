"""Draw the sample sheet: `python -m models.training.sheet --model models/shapes`.

Sixteen held-out captions in plain words, first draw, one seed, none discarded. The captions are a
fixed walk through the colours and shapes, written down before the model was trained.
"""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw

from models.training.captions import say
from models.training.drawing import Sampling, draw_prompts
from models.training.scenes import Kind, Wish, is_held_out, is_pair_held_out
from models.training.vocabulary import (
    COLOURS,
    FIRST_SHAPES,
    LATER_SHAPES,
    PLAIN,
    RADII,
    RELATIONS,
    SHAPES,
)

COLUMNS = 4
SIDE_PX = 192
"""Of an enlarged picture."""
CAPTION_PX = 34
SHEET_SEED = 42
_STYLED = {4: "striped", 5: "outlined", 8: "outlined", 11: "striped"}
"""Which of the single objects are not plain."""


def sheet_wishes() -> list[Wish]:
    """Twelve single objects, one per colour, each a pair never trained; then four pairs."""
    colours = list(COLOURS)
    kinds = [_never_trained(colour) for colour in colours]
    singles = [
        Wish(
            (replace(kind, style=_STYLED.get(index, PLAIN)),),
            colours[(index + 5) % len(colours)],
            size=list(RADII)[index % 3],
        )
        for index, kind in enumerate(kinds)
    ]
    pairs = [
        Wish(
            (
                kinds[index],
                Kind(colours[index + 3], FIRST_SHAPES[(3 * index + 2) % len(FIRST_SHAPES)]),
            ),
            colours[index + 7],
            relation=relation,
        )
        for index, relation in enumerate(RELATIONS)
    ]
    wishes = singles + pairs
    if not all(is_held_out(wish) for wish in wishes):
        raise ValueError("A caption of the sheet has been trained; choose held-out ones only")
    return wishes


def _never_trained(colour: str) -> Kind:
    """A shape that is never drawn in this colour: one of the later ones if there is, but once each."""
    kinds = [Kind(colour, shape) for shape in SHAPES]
    later = [k for k in kinds if k.shape in LATER_SHAPES and list(COLOURS).index(colour) >= 6]
    return next(kind for kind in (*later, *kinds) if is_pair_held_out(kind))


def compose(pictures: list[Image.Image], captions: list[str]) -> Image.Image:
    """Pictures in a grid, enlarged without smoothing, each above its caption."""
    side = max(SIDE_PX, pictures[0].width)
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (side + 8), rows * (side + CAPTION_PX + 4)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = index % COLUMNS * (side + 8) + 4
        top = index // COLUMNS * (side + CAPTION_PX + 4) + 4
        sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (left, top))
        pen.text((left, top + side + 2), "\n".join(textwrap.wrap(caption, 33)), fill="black")
    return sheet


def main() -> None:
    """Draw the sheet into the model's folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/shapes"))
    parser.add_argument("--out", type=Path, help="default: samples.png in the model's folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = DiffusionPipeline.from_pretrained(options.model)
    pipeline.set_progress_bar_config(disable=True)
    captions = [say(wish, None) for wish in sheet_wishes()]
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    sampling = Sampling(seed=SHEET_SEED, width_px=side, height_px=side)
    drawn = draw_prompts(pipeline, captions, sampling)
    sheet = compose([Image.fromarray(picture) for picture in drawn], captions)
    sheet.save(options.out or options.model / "samples.png", optimize=True)


if __name__ == "__main__":
    main()
