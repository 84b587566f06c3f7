"""Film the sample sheets: `python -m models.training.motion.sheet --model models/motion`.

Held-out captions in plain words, first draw, one seed, none discarded, a row of frames each. The
captions are a fixed walk through colours, shapes and movements, written down before the model was
trained. `--longer` films another sheet: every fourth frame of clips of 33.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw

from models.training.motion.filming import Shooting, film_prompts
from models.training.motion.movements import BOUNCING, MOVING, ClipWish, is_clip_held_out
from models.training.motion.phrases import say_clip
from models.training.scenes import Kind, Wish, is_pair_held_out
from models.training.vocabulary import COLOURS, SHAPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import AnimateDiffPipeline

    from models.training.motion.watching import Clip

ROWS = 12
LONG_FRAMES, SHOWN_EVERY = 33, 4
LONG_MOVING = (*MOVING, BOUNCING)
CAPTION_PX = 16
GAP_PX = 3
SHEET_SEED = 42


def sheet_wishes(movements: Sequence[str] = MOVING, rows: int = ROWS) -> list[ClipWish]:
    """Each colour once at most, in a pair never trained; the movements take turns."""
    colours = list(COLOURS)
    turns = itertools.cycle(movements)
    wishes = []
    for index in range(rows):
        colour, background = colours[index], colours[(index + 5) % len(colours)]
        kind = next(k for k in (Kind(colour, s) for s in SHAPES) if is_pair_held_out(k))
        wishes.append(ClipWish(Wish((kind,), background), next(turns)))
    if not all(is_clip_held_out(wish) for wish in wishes):
        raise ValueError("A caption of the sheet has been trained; choose held-out ones only")
    return wishes


def compose(clips: Sequence[Clip], captions: Sequence[str]) -> Image.Image:
    """One row of frames per clip, its caption above."""
    frames, side = clips[0].shape[:2]
    row_px = side + CAPTION_PX + GAP_PX
    sheet = Image.new("RGB", (frames * (side + GAP_PX) + GAP_PX, len(clips) * row_px), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (clip, caption) in enumerate(zip(clips, captions, strict=True)):
        pen.text((GAP_PX, row * row_px + 2), caption, fill="black")
        for column, frame in enumerate(clip):
            corner = (GAP_PX + column * (side + GAP_PX), row * row_px + CAPTION_PX)
            sheet.paste(Image.fromarray(frame), corner)
    return sheet


def main() -> None:
    """Film the sheet, or the longer one, into the model's folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/motion"))
    parser.add_argument("--out", type=Path, help="default: the model's folder")
    parser.add_argument("--longer", action="store_true", help="the sheet of 33 frames instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = DiffusionPipeline.from_pretrained(options.model)
    pipeline.set_progress_bar_config(disable=True)
    folder = options.out or options.model
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    shooting = Shooting(seed=SHEET_SEED, width_px=side, height_px=side)
    if not options.longer:
        _film(pipeline, sheet_wishes(), shooting).save(folder / "samples.png", optimize=True)
        return
    longer = replace(shooting, frames=LONG_FRAMES, batch=1)
    wishes = sheet_wishes(LONG_MOVING, len(LONG_MOVING))
    _film(pipeline, wishes, longer, SHOWN_EVERY).save(folder / "longer.png", optimize=True)


def _film(
    pipeline: AnimateDiffPipeline, wishes: Sequence[ClipWish], shooting: Shooting, every: int = 1
) -> Image.Image:
    captions = [say_clip(wish, None) for wish in wishes]
    clips = film_prompts(pipeline, captions, shooting)
    return compose([clip[::every] for clip in clips], captions)


if __name__ == "__main__":
    main()
