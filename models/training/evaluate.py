"""Measure a pipeline folder: `python -m models.training.evaluate --model models/shapes`.

Draws held-out captions, first draw each, none discarded; judges every picture; times the three
stages; and writes the tables into the model card, between its markers.
"""

from __future__ import annotations

import argparse
import functools
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import DiffusionPipeline

from models.training import card
from models.training.batches import as_pixels, pictures_of
from models.training.decoder import reconstruction_psnr_db
from models.training.diffusion import OTHER_SIZES_PX
from models.training.drawing import Sampling, draw_prompts
from models.training.scenes import lay_out
from models.training.scoring import hard_prompts, held_out_prompts, score
from models.training.vocabulary import LATER_SHAPES, PLAIN, STYLES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from diffusers import AutoencoderKL, StableDiffusionPipeline

    from models.training.scenes import Kind
    from models.training.scoring import Prompt, Share
    from models.training.seeing import Pixels

PROMPT_SEED = 90_000
NOISE_SEED = 1_000_000
SINGLES_SHARE = 0.6
TIMED_RUNS = 5
_POINTS = ("present", "colour", "shape", "background", "style", "size", "position", "all")


def quality_rows(
    pipeline: StableDiffusionPipeline, count: int, sampling: Sampling
) -> list[list[str]]:
    """One row per kind of caption, at one picture size."""
    singles = round(count * SINGLES_SHARE)
    prompts = held_out_prompts(PROMPT_SEED, singles, count - singles)
    pictures = draw_prompts(pipeline, [prompt.text for prompt in prompts], sampling)
    half = singles // 2
    return [
        _row("one object, colour-shape pair never trained", prompts[:half], pictures[:half]),
        _row(
            "one object, with background never trained",
            prompts[half:singles],
            pictures[half:singles],
        ),
        _row("**one object, both kinds**", prompts[:singles], pictures[:singles]),
        _row("**two objects, at least one never trained**", prompts[singles:], pictures[singles:]),
    ]


def hard_rows(pipeline: StableDiffusionPipeline, count: int, sampling: Sampling) -> list[list[str]]:
    """One row per style and later shape, of single objects: what is hardest."""
    sorts: dict[str, Callable[[Kind], bool]] = {
        f"one {style} object": functools.partial(_has_style, style=style) for style in STYLES[1:]
    }
    sorts |= {f"one {shape}": functools.partial(_has_shape, shape=shape) for shape in LATER_SHAPES}
    rows = []
    for name, accepts in sorts.items():
        prompts = hard_prompts(PROMPT_SEED + 3, count, accepts)
        pictures = draw_prompts(pipeline, [prompt.text for prompt in prompts], sampling)
        rows.append(_row(name, prompts, pictures))
    return rows


def _has_style(kind: Kind, style: str) -> bool:
    return kind.style == style and kind.shape not in LATER_SHAPES


def _has_shape(kind: Kind, shape: str) -> bool:
    return kind.style == PLAIN and kind.shape == shape


def size_rows(pipeline: StableDiffusionPipeline, count: int, sampling: Sampling) -> list[list[str]]:
    """Two rows per picture size other than 64 x 64: one object, two objects."""
    rows = []
    for width_px, height_px in OTHER_SIZES_PX:
        prompts = held_out_prompts(PROMPT_SEED + 1, count // 2, count - count // 2)
        batch = max(1, sampling.batch * 64 * 64 // (width_px * height_px))
        sized = replace(sampling, width_px=width_px, height_px=height_px, batch=batch)
        pictures = draw_prompts(pipeline, [prompt.text for prompt in prompts], sized)
        name = f"{width_px} x {height_px}"
        middle = count // 2
        rows.append(_row(f"{name}, one object", prompts[:middle], pictures[:middle]))
        rows.append(_row(f"{name}, two objects", prompts[middle:], pictures[middle:]))
    return rows


def _row(name: str, prompts: Sequence[Prompt], pictures: Sequence[Pixels]) -> list[str]:
    shares: dict[str, Share] = score(prompts, pictures)
    return [name, str(len(prompts)), *(str(shares[point]) for point in _POINTS)]


@torch.no_grad()
def stage_ms(pipeline: StableDiffusionPipeline, sampling: Sampling) -> list[str]:
    """Median milliseconds of text encoding, denoising, decoding and all of it, one picture."""
    runs: list[tuple[float, float, float]] = []
    for _ in range(TIMED_RUNS):
        start = time.perf_counter()
        text, no_text = pipeline.encode_prompt("a red circle on a blue background", "cpu", 1, True)  # noqa: FBT003
        encoded = time.perf_counter()
        latents = pipeline(
            prompt_embeds=text,
            negative_prompt_embeds=no_text,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            width=sampling.width_px,
            height=sampling.height_px,
            output_type="latent",
        ).images
        denoised = time.perf_counter()
        pipeline.vae.decode(latents)
        runs.append((encoded - start, denoised - encoded, time.perf_counter() - denoised))
    parts = [1000 * median(run[index] for run in runs) for index in range(3)]
    total = 1000 * median(sum(run) for run in runs)
    return [f"{sampling.width_px} x {sampling.height_px}", *(f"{ms:.0f}" for ms in (*parts, total))]


@torch.no_grad()
def reconstruction_line(autoencoder: AutoencoderKL, count: int = 200) -> str:
    """What the autoencoder alone costs: held-out drawings, encoded and decoded."""
    psnr_db = reconstruction_psnr_db(autoencoder, torch.device("cpu"))
    prompts = held_out_prompts(PROMPT_SEED + 2, count // 2, count // 2)
    rng = np.random.default_rng(PROMPT_SEED)
    drawings = pictures_of([lay_out(p.wish, rng) for p in prompts], torch.device("cpu"))
    decoded = [
        autoencoder.decode(autoencoder.encode(part).latent_dist.mode()).sample
        for part in drawings.split(20)
    ]
    right = score(prompts, list(as_pixels(torch.cat(decoded))))["all"]
    return f"Real drawings through the autoencoder: {psnr_db:.1f} dB, everything right {right}."


def report(pipeline: StableDiffusionPipeline, options: argparse.Namespace) -> str:
    """The measured part of the card."""
    sampling = Sampling(steps=options.steps, guidance=options.guidance, seed=NOISE_SEED)
    header = ["64 x 64" if not options.size_captions else "captions", "n", *_POINTS]
    rows = quality_rows(pipeline, options.captions, sampling)
    rows += hard_rows(pipeline, options.hard_captions, sampling)
    parts = [card.table(header, rows)]
    if options.size_captions:
        others = size_rows(pipeline, options.size_captions, sampling)
        parts.append(card.table(["other sizes", "n", *_POINTS], others))
    times = [
        stage_ms(pipeline, replace(sampling, width_px=side, height_px=side))
        for side in (64, 96, 128)
    ]
    parts.append(card.table(["one picture, ms", "encode", "denoise", "decode", "all"], times))
    parts.append(reconstruction_line(pipeline.vae))
    parts.append(
        f"`python -m models.training.evaluate --captions {options.captions} "
        f"--hard-captions {options.hard_captions} "
        f"--size-captions {options.size_captions}`, {options.steps} steps, "
        f"guidance {options.guidance}, first draw of each caption, none discarded; "
        f"{card.machine()}, {torch.get_num_threads()} thread."
    )
    return "\n\n".join(parts)


def main() -> None:
    """Measure, print, and write into the card unless told not to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/shapes"))
    parser.add_argument(
        "--captions", type=int, default=500, help="at 64 x 64, 3 in 5 of one object"
    )
    parser.add_argument("--size-captions", type=int, default=0, help="at each other picture size")
    parser.add_argument(
        "--hard-captions", type=int, default=0, help="at 64 x 64, of each style and later shape"
    )
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--print-only", action="store_true", help="leave the card as it is")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipeline = DiffusionPipeline.from_pretrained(options.model)
    pipeline.set_progress_bar_config(disable=True)
    text = report(pipeline, options)
    print(text)
    if not options.print_only:
        card.replace_part(options.model / "README.md", "measured", text)


if __name__ == "__main__":
    main()
