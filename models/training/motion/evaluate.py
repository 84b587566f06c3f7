"""Measure a video folder: `python -m models.training.motion.evaluate --clips 200`.

Films held-out captions, first draw each, none discarded; judges every clip; holds the judge
itself against drawn, decoded and wrong clips; times the three stages; and writes the tables into
the model card, between its markers.
"""

from __future__ import annotations

import argparse
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
from models.training.motion.filming import Shooting, film_prompts
from models.training.motion.movements import FRAMES, LATER_MOVING, MOVING, is_straight, lay_out_clip
from models.training.motion.scoring import SORTS, held_out_clip_prompts, judge_all, shares_of
from models.training.motion.watching import POINTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import AnimateDiffPipeline, AutoencoderKL

    from models.training.motion.scoring import ClipPrompt
    from models.training.motion.watching import Clip, ClipVerdict

PROMPT_SEED, NOISE_SEED = 91_000, 2_000_000
TIMED_RUNS = 3
OTHER_LENGTHS = (17, 33)
"""Frames of clips that are not nine frames long."""
EVERY_MOVING = (*MOVING, *LATER_MOVING)
_COLUMNS = (*POINTS, "all")


def quality_rows(prompts: Sequence[ClipPrompt], verdicts: Sequence[ClipVerdict]) -> list[list[str]]:
    """One row per sort of held-out caption, per movement, and for everything."""
    pairs = list(zip(prompts, verdicts, strict=True))
    groups = {name: [v for p, v in pairs if test(p.wish)] for name, test in SORTS.items()}
    groups |= {name: [v for p, v in pairs if p.wish.movement == name] for name in EVERY_MOVING}
    groups["**all held-out captions**"] = list(verdicts)
    return [_row(name, group) for name, group in groups.items() if group]


def _row(name: str, verdicts: Sequence[ClipVerdict]) -> list[str]:
    shares = shares_of(verdicts)
    return [name, str(len(verdicts)), *(str(shares[point]) for point in _COLUMNS)]


@torch.no_grad()
def judge_rows(
    autoencoder: AutoencoderKL, side_px: int, movements: Sequence[str], count: int = 60
) -> list[list[str]]:
    """What the judge says of clips whose truth is known: right ones, decoded ones, wrong ones."""
    prompts = held_out_clip_prompts(PROMPT_SEED + 1, count, movements)
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


def longer_rows(pipeline: AnimateDiffPipeline, count: int, shooting: Shooting) -> list[list[str]]:
    """Per length other than nine frames, one row for straight movements and one for the others."""
    rows = []
    for frames in OTHER_LENGTHS:
        for name, asked in (("straight", MOVING), ("bouncing and turning", LATER_MOVING)):
            prompts = held_out_clip_prompts(PROMPT_SEED + 2, count // 2, asked)
            sized = replace(shooting, frames=frames, batch=1)
            clips = film_prompts(pipeline, [prompt.text for prompt in prompts], sized)
            rows.append(_row(f"{frames} frames, {name}", judge_all(prompts, clips)))
    return rows


@torch.no_grad()
def stage_ms(pipeline: AnimateDiffPipeline, shooting: Shooting) -> list[str]:
    """Median milliseconds of text encoding, denoising, decoding and all of it, for one clip."""
    runs: list[tuple[float, float, float]] = []
    for _ in range(TIMED_RUNS):
        start = time.perf_counter()
        prompt = "a red circle moving right on a blue background"
        text, no_text = pipeline.encode_prompt(prompt, "cpu", 1, True)  # noqa: FBT003
        encoded = time.perf_counter()
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
        denoised = time.perf_counter()
        pipeline.decode_latents(latents)
        runs.append((encoded - start, denoised - encoded, time.perf_counter() - denoised))
    parts = [1000 * median(run[index] for run in runs) for index in range(3)]
    total = 1000 * median(sum(run) for run in runs)
    name = f"{shooting.frames} frames, {shooting.width_px} x {shooting.height_px}"
    return [name, *(f"{ms:.0f}" for ms in (*parts, total))]


def report(pipeline: AnimateDiffPipeline, options: argparse.Namespace) -> str:
    """The measured part of the card."""
    side_px = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    shooting = Shooting(
        steps=options.steps,
        guidance=options.guidance,
        seed=NOISE_SEED,
        width_px=side_px,
        height_px=side_px,
    )
    movements = EVERY_MOVING if options.every_movement else MOVING
    prompts = held_out_clip_prompts(PROMPT_SEED, options.clips, movements)
    clips = film_prompts(pipeline, [prompt.text for prompt in prompts], shooting)
    rows = quality_rows(prompts, judge_all(prompts, clips))
    header = [f"{FRAMES} frames, {side_px} x {side_px}", "n", *_COLUMNS]
    timing = ["one clip, ms", "encode", "denoise", "decode", "all"]
    said = (
        f"`python -m models.training.motion.evaluate --model models/{options.model.name} "
        f"--clips {options.clips} --longer-clips {options.longer_clips}"
        f"{' --every-movement' * options.every_movement}`, {options.steps} steps, "
        f"guidance {options.guidance}, first draw of each caption, none discarded; "
        f"{card.machine()}. Times are of one thread."
    )
    judged = card.table(
        ["the judge on known clips", *header[1:]], judge_rows(pipeline.vae, side_px, movements)
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    lengths = (FRAMES, *(OTHER_LENGTHS if options.longer_clips else ()))
    sizes = [replace(shooting, frames=frames) for frames in lengths]
    timed = card.table(timing, [stage_ms(pipeline, sized) for sized in sizes])
    torch.set_num_threads(threads)
    parts = [card.table(header, rows), judged, timed, said]
    if options.longer_clips:
        longer = longer_rows(pipeline, options.longer_clips, shooting)
        parts.insert(1, card.table(["longer", *header[1:]], longer))
    return "\n\n".join(parts)


def main() -> None:
    """Measure, print, and write into the card unless told not to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/motion"))
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--longer-clips", type=int, default=0, help="of each length")
    parser.add_argument("--every-movement", action="store_true", help="bounces and turns too")
    parser.add_argument("--steps", type=int, default=12)
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
