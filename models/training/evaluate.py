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
from models.training.diffusion import OTHER_SIZES_PX, SQUARE_PX
from models.training.drawing import Sampling, draw_prompts
from models.training.scenes import lay_out
from models.training.scoring import hard_prompts, held_out_prompts, score, styled_prompts
from models.training.vocabulary import SHAPES, STYLES

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        *shape_rows(prompts[:singles], pictures[:singles]),
        _row("**one object, both kinds**", prompts[:singles], pictures[:singles]),
        _row("**two objects, at least one never trained**", prompts[singles:], pictures[singles:]),
    ]


def style_rows(
    pipeline: StableDiffusionPipeline, count: int, sampling: Sampling
) -> list[list[str]]:
    """One row per style, of single objects."""
    rows = []
    for style in STYLES[1:]:
        prompts = hard_prompts(PROMPT_SEED + 3, count, functools.partial(_has_style, style=style))
        pictures = draw_prompts(pipeline, [prompt.text for prompt in prompts], sampling)
        rows.append(_row(f"**one {style} object**", prompts, pictures))
    return rows


def _has_style(kind: Kind, style: str) -> bool:
    return kind.style == style


def size_rows(pipeline: StableDiffusionPipeline, count: int, sampling: Sampling) -> list[list[str]]:
    """Two rows per picture size besides the usual one: one object, two objects."""
    rows = []
    for width_px, height_px in other_sizes_px(sampling.width_px):
        prompts = held_out_prompts(PROMPT_SEED + 1, count // 2, count - count // 2)
        batch = max(1, sampling.batch * sampling.width_px**2 // (width_px * height_px))
        sized = replace(sampling, width_px=width_px, height_px=height_px, batch=batch)
        pictures = draw_prompts(pipeline, [prompt.text for prompt in prompts], sized)
        name = f"{width_px} x {height_px}"
        middle = count // 2
        rows.append(_row(f"{name}, one object", prompts[:middle], pictures[:middle]))
        rows.append(_row(f"{name}, two objects", prompts[middle:], pictures[middle:]))
    return rows


def other_sizes_px(side_px: int) -> list[tuple[int, int]]:
    """The trained sizes besides the square one, for a model whose usual side is `side_px`."""
    times = side_px // SQUARE_PX[0]
    return [(times * width_px, times * height_px) for width_px, height_px in OTHER_SIZES_PX]


def shape_rows(prompts: Sequence[Prompt], pictures: Sequence[Pixels]) -> list[list[str]]:
    """One row per shape, of single objects."""
    rows = []
    for shape in SHAPES:
        chosen = [i for i, prompt in enumerate(prompts) if prompt.wish.kinds[0].shape == shape]
        if chosen:
            mine = [prompts[i] for i in chosen], [pictures[i] for i in chosen]
            rows.append(_row(f"one {shape}", *mine))
    return rows


def _row(name: str, prompts: Sequence[Prompt], pictures: Sequence[Pixels]) -> list[str]:
    shares: dict[str, Share] = score(prompts, pictures)
    return [name, str(len(prompts)), *(str(shares[point]) for point in _POINTS)]


@torch.no_grad()
def stage_ms(pipeline: StableDiffusionPipeline, sampling: Sampling) -> list[str]:
    """Median milliseconds of text encoding, denoising, decoding and all of it, one picture.

    Processor time of one thread, so that what else the machine does hardly counts.
    """
    runs: list[tuple[float, float, float]] = []
    for _ in range(TIMED_RUNS):
        start = time.process_time()
        text, no_text = pipeline.encode_prompt("a red circle on a blue background", "cpu", 1, True)  # noqa: FBT003
        encoded = time.process_time()
        latents = pipeline(
            prompt_embeds=text,
            negative_prompt_embeds=no_text,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            width=sampling.width_px,
            height=sampling.height_px,
            output_type="latent",
        ).images
        denoised = time.process_time()
        pipeline.vae.decode(latents)
        runs.append((encoded - start, denoised - encoded, time.process_time() - denoised))
    parts = [1000 * median(run[index] for run in runs) for index in range(3)]
    total = 1000 * median(sum(run) for run in runs)
    return [f"{sampling.width_px} x {sampling.height_px}", *(f"{ms:.0f}" for ms in (*parts, total))]


@torch.no_grad()
def reconstruction_line(autoencoder: AutoencoderKL, side_px: int, count: int = 200) -> str:
    """What the autoencoder alone costs: held-out drawings, in every style, encoded and decoded."""
    shrink = side_px // SQUARE_PX[0]
    psnr_db = reconstruction_psnr_db(autoencoder, torch.device("cpu"), shrink=shrink)
    prompts = held_out_prompts(PROMPT_SEED + 2, count // 4, count // 2)
    prompts += styled_prompts(PROMPT_SEED + 2, count // 4)
    rng = np.random.default_rng(PROMPT_SEED)
    pictures: list[Pixels] = []
    for prompt in prompts:
        scene = lay_out(prompt.wish, rng, (side_px, side_px))
        latent = autoencoder.encode(pictures_of([scene], torch.device("cpu"))).latent_dist.mode()
        pictures.extend(as_pixels(autoencoder.decode(latent).sample))
    right = score(prompts, pictures)["all"]
    return f"Real drawings through the autoencoder: {psnr_db:.1f} dB, everything right {right}."


def report(pipeline: StableDiffusionPipeline, options: argparse.Namespace) -> str:
    """The measured part of the card."""
    side_px = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    sampling = Sampling(
        steps=options.steps,
        guidance=options.guidance,
        seed=NOISE_SEED,
        width_px=side_px,
        height_px=side_px,
    )
    rows = quality_rows(pipeline, options.captions, sampling)
    rows += style_rows(pipeline, options.styled_captions, sampling)
    parts = [card.table([f"{side_px} x {side_px}", "n", *_POINTS], rows)]
    if options.size_captions:
        others = size_rows(pipeline, options.size_captions, sampling)
        parts.append(card.table(["other sizes", "n", *_POINTS], others))
    torch.set_num_threads(1)
    sizes = [(side_px, side_px), *other_sizes_px(side_px)[:3]]
    times = [
        stage_ms(pipeline, replace(sampling, width_px=width_px, height_px=height_px))
        for width_px, height_px in sizes
    ]
    parts.append(card.table(["one picture, ms", "encode", "denoise", "decode", "all"], times))
    parts.append(reconstruction_line(pipeline.vae, side_px))
    parts.append(
        f"`python -m models.training.evaluate --model models/{options.model.name} "
        f"--captions {options.captions} --styled-captions {options.styled_captions} "
        f"--size-captions {options.size_captions}`, {options.steps} steps, "
        f"guidance {options.guidance}, first draw of each caption, none discarded; "
        f"{card.machine()}. Times are processor time of one thread."
    )
    return "\n\n".join(parts)


def main() -> None:
    """Measure, print, and write into the card unless told not to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/shapes"))
    parser.add_argument(
        "--captions", type=int, default=500, help="at the usual size, 3 in 5 of one object"
    )
    parser.add_argument("--size-captions", type=int, default=0, help="at each other picture size")
    parser.add_argument(
        "--styled-captions", type=int, default=0, help="at the usual size, of each style"
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
