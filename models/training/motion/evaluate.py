"""Measure a video folder: `python -m models.training.motion.evaluate --clips 500`.

Films held-out captions, first draw each, none discarded; judges every clip; holds the judge
itself against drawn, decoded and wrong clips; times the three stages; and writes the tables into
the model card, between its markers. Longer clips and bounces have a part of their own there.
"""

from __future__ import annotations

import argparse
import functools
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from models.training import card
from models.training.batches import as_pixels, pictures_of
from models.training.motion.filming import Shooting, film_prompts
from models.training.motion.movements import (
    BOUNCING,
    EVERY_MOVING,
    FRAMES,
    MOVING,
    is_straight,
    lay_out_clip,
)
from models.training.motion.scoring import SORTS, held_out_clip_prompts, judge_all, shares_of
from models.training.motion.watching import POINTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from diffusers import AnimateDiffPipeline, AutoencoderKL

    from models.training.motion.scoring import ClipPrompt
    from models.training.motion.watching import Clip, ClipVerdict

    Film = Callable[[Sequence[ClipPrompt], Shooting], list[Clip]]

PROMPT_SEED, NOISE_SEED = 91_000, 2_000_000
TIMED_RUNS = 3
OTHER_LENGTHS = (17, 33)
"""Frames of clips that are not nine frames long."""
_COLUMNS = (*POINTS, "all")


def quality_rows(prompts: Sequence[ClipPrompt], verdicts: Sequence[ClipVerdict]) -> list[list[str]]:
    """One row per sort of held-out caption, per movement, and for everything."""
    pairs = list(zip(prompts, verdicts, strict=True))
    groups = {name: [v for p, v in pairs if test(p.wish)] for name, test in SORTS.items()}
    groups |= {name: [v for p, v in pairs if p.wish.movement == name] for name in MOVING}
    groups["**all held-out captions**"] = list(verdicts)
    return [_row(name, group) for name, group in groups.items() if group]


def _row(name: str, verdicts: Sequence[ClipVerdict]) -> list[str]:
    shares = shares_of(verdicts)
    return [name, str(len(verdicts)), *(str(shares[point]) for point in _COLUMNS)]


@torch.no_grad()
def judge_rows(autoencoder: AutoencoderKL, side_px: int, count: int = 60) -> list[list[str]]:
    """What the judge says of clips whose truth is known: right ones, decoded ones, wrong ones.

    Of every movement, those that the model does not know too.
    """
    prompts = held_out_clip_prompts(PROMPT_SEED + 1, count, EVERY_MOVING)
    rng = np.random.default_rng(PROMPT_SEED)
    drawn, decoded = [], []
    for prompt in prompts:
        frames = pictures_of(lay_out_clip(prompt.wish, rng, FRAMES, side_px), torch.device("cpu"))
        drawn.append(as_pixels(frames))
        latents = autoencoder.encode(frames).latent_dist.mode()
        decoded.append(as_pixels(autoencoder.decode(latents).sample))
    sorts: dict[str, list[Clip]] = {
        "drawn": drawn,
        "drawn, encoded and decoded": decoded,
        "wrong: frozen": [clip[:1].repeat(FRAMES, axis=0) for clip in drawn],
        "wrong: frames shuffled": [rng.permutation(clip) for clip in drawn],
        "wrong: clip of another caption": [*drawn[1:], drawn[0]],
    }
    rows = [_row(name, judge_all(prompts, clips)) for name, clips in sorts.items()]
    # What bounces or turns does so backwards too.
    straight = [i for i, prompt in enumerate(prompts) if is_straight(prompt.wish.movement)]
    backwards = judge_all([prompts[i] for i in straight], [drawn[i][::-1] for i in straight])
    return [*rows, _row("wrong: straight course reversed", backwards)]


def other_rows(film: Film, options: argparse.Namespace, shooting: Shooting) -> list[list[str]]:
    """Straight movements in other lengths, a row per length, and bounces in every length."""
    asked = [(frames, "straight", MOVING, options.longer_clips) for frames in OTHER_LENGTHS]
    asked += [(n, BOUNCING, (BOUNCING,), options.bouncing_clips) for n in (FRAMES, *OTHER_LENGTHS)]
    rows = []
    for frames, name, movements, count in asked:
        if count:
            prompts = held_out_clip_prompts(PROMPT_SEED + 2, count, movements)
            clips = film(prompts, replace(shooting, frames=frames, batch=1))
            rows.append(_row(f"{frames} frames, {name}", judge_all(prompts, clips)))
    return rows


@torch.no_grad()
def stage_ms(pipeline: AnimateDiffPipeline, shooting: Shooting) -> list[str]:
    """Median milliseconds of text encoding, denoising, decoding and all of it, for one clip.

    Processor time of one thread, so that what else the machine does hardly counts.
    """
    runs: list[tuple[float, float, float]] = []
    for _ in range(TIMED_RUNS):
        start = time.process_time()
        prompt = "a red circle moving right on a blue background"
        text, no_text = pipeline.encode_prompt(prompt, "cpu", 1, True)  # noqa: FBT003
        encoded = time.process_time()
        latents = pipeline(
            prompt_embeds=text,
            negative_prompt_embeds=no_text,
            num_inference_steps=shooting.steps,
            guidance_scale=shooting.guidance,
            num_frames=shooting.frames,
            width=shooting.width_px,
            height=shooting.height_px,
            output_type="latent",
        ).frames
        denoised = time.process_time()
        pipeline.decode_latents(latents)
        runs.append((encoded - start, denoised - encoded, time.process_time() - denoised))
    parts = [1000 * median(run[index] for run in runs) for index in range(3)]
    total = 1000 * median(sum(run) for run in runs)
    name = f"{shooting.frames} frames, {shooting.width_px} x {shooting.height_px}"
    return [name, *(f"{ms:.0f}" for ms in (*parts, total))]


def report(pipeline: AnimateDiffPipeline, film: Film, options: argparse.Namespace) -> str:
    """The measured part of the card: clips of nine frames, the judge itself, times."""
    shooting = _shooting(pipeline, options)
    side_px = shooting.width_px
    prompts = held_out_clip_prompts(PROMPT_SEED, options.clips)
    rows = quality_rows(prompts, judge_all(prompts, film(prompts, shooting)))
    timed = [stage_ms(pipeline, replace(shooting, frames=n)) for n in (FRAMES, *OTHER_LENGTHS)]
    columns = ["n", *_COLUMNS]
    parts = [
        card.table([f"{FRAMES} frames, {side_px} x {side_px}", *columns], rows),
        card.table(["the judge on known clips", *columns], judge_rows(pipeline.vae, side_px)),
        card.table(["one clip, ms", "encode", "denoise", "decode", "all"], timed),
        f"{_said(options, f'--clips {options.clips}')} Times are processor time of one thread.",
    ]
    return "\n\n".join(parts)


def other_report(pipeline: AnimateDiffPipeline, film: Film, options: argparse.Namespace) -> str:
    """The part of the card on longer clips and on bounces."""
    shooting = _shooting(pipeline, options)
    rows = other_rows(film, options, shooting)
    asked = f"--longer-clips {options.longer_clips} --bouncing-clips {options.bouncing_clips}"
    name = f"other clips, {shooting.width_px} x {shooting.height_px}"
    return f"{card.table([name, 'n', *_COLUMNS], rows)}\n\n{_said(options, f'--clips 0 {asked}')}"


def _shooting(pipeline: AnimateDiffPipeline, options: argparse.Namespace) -> Shooting:
    side_px = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    return Shooting(
        steps=options.steps,
        guidance=options.guidance,
        seed=NOISE_SEED,
        width_px=side_px,
        height_px=side_px,
    )


def _said(options: argparse.Namespace, asked: str) -> str:
    return (
        f"`python -m models.training.motion.evaluate --model models/{options.model.name} {asked}"
        f"{' --bfloat16' * options.bfloat16}`, "
        f"{options.steps} steps, guidance {options.guidance}, first draw of each caption, "
        f"none discarded; {card.machine()}."
    )


def main() -> None:
    """Measure, print, and write into the card unless told not to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/motion"))
    parser.add_argument("--clips", type=int, default=500, help="straight, of nine frames")
    parser.add_argument("--longer-clips", type=int, default=0, help="of each other length")
    parser.add_argument("--bouncing-clips", type=int, default=0, help="of each length")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--processes", type=int, default=1, help="that film, one thread each")
    parser.add_argument(
        "--bfloat16", action="store_true", help="film with it, as on a GPU; twice as fast"
    )
    parser.add_argument("--print-only", action="store_true", help="leave the card as it is")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = DiffusionPipeline.from_pretrained(options.model)
    pipeline.set_progress_bar_config(disable=True)
    texts = {}
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        film = functools.partial(film_apart, pool, options)
        if options.clips:
            texts["measured"] = report(pipeline, film, options)
        if options.longer_clips or options.bouncing_clips:
            texts["others"] = other_report(pipeline, film, options)
    for part, text in texts.items():
        print(text)
        if not options.print_only:
            card.replace_part(options.model / "README.md", part, text)


def film_apart(
    pool: Executor, options: argparse.Namespace, prompts: Sequence[ClipPrompt], shooting: Shooting
) -> list[Clip]:
    """The clips of `film_prompts`, filmed batch by batch in other processes."""
    starts = range(0, len(prompts), shooting.batch)
    texts = [[p.text for p in prompts[start : start + shooting.batch]] for start in starts]
    sized = [replace(shooting, seed=shooting.seed + start) for start in starts]
    film = functools.partial(_film_batch, options.model, bfloat16=options.bfloat16)
    parts = pool.map(film, texts, sized)
    bar = tqdm(parts, total=len(texts), unit="batch", desc=f"{shooting.frames} frames")
    return [clip for part in bar for clip in part]


def _film_batch(
    model: Path, prompts: Sequence[str], shooting: Shooting, *, bfloat16: bool
) -> list[Clip]:
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        return film_prompts(_loaded(model), prompts, shooting)


@functools.cache
def _loaded(model: Path) -> AnimateDiffPipeline:
    """The folder, once per process."""
    torch.set_num_threads(1)
    pipeline = DiffusionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


if __name__ == "__main__":
    main()
