"""Train the shapes model: `python -m models.training.train --run FOLDER --out models/shapes`.

First the decoder, then the denoiser on small pictures, then the denoiser on pictures of every size
and in every style; all resume from their last checkpoint in the run folder. With `--start` the
first two are taken from an earlier folder. Along the way the denoiser is scored on held-out
captions, and the pipeline folder is written each time the score has risen.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import StableDiffusionPipeline

from models.training.decoder import DecoderStage, reconstruction_psnr_db
from models.training.device import best_device
from models.training.diffusion import WIDER, DenoiserStage
from models.training.looks import FIRST_KINDS, WIDER_KINDS, Kind, Watcher
from models.training.loop import Position, Schedule, train

if TYPE_CHECKING:
    from collections.abc import Sequence

SEED = 7


def main() -> None:
    """Read the arguments and train all stages."""
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    start = _start(options)
    autoencoder = start.vae.float().to(best_device())
    stage = DenoiserStage(best_device(), WIDER, start=start, name="wider")
    watcher = Watcher(stage, autoencoder, options.run, options.out, _kinds(options, WIDER_KINDS))
    train(stage, _schedule(options, options.wider_pictures), options.run, watcher.look)


def _start(options: argparse.Namespace) -> StableDiffusionPipeline:
    """What the last stage begins with: an earlier folder, or decoder and denoiser trained here."""
    if options.start is not None:
        return StableDiffusionPipeline.from_pretrained(options.start)
    device = best_device()
    decoder = DecoderStage(device)

    def look_at_decoder(_: Position) -> None:
        psnr_db = reconstruction_psnr_db(decoder.smoothed(), device)
        sys.stderr.write(f"\ndecoder: {psnr_db:.2f} dB on held-out drawings\n")

    lengths = Schedule(_length(options, options.decoder_pictures), look_every=13_000, seed=SEED)
    train(decoder, lengths, options.run, look_at_decoder)
    denoiser = DenoiserStage(device)
    watcher = Watcher(denoiser, decoder.smoothed(), options.run, None, _kinds(options, FIRST_KINDS))
    train(denoiser, _schedule(options, options.pictures), options.run, watcher.look)
    return watcher.pipeline()


def _kinds(options: argparse.Namespace, kinds: Sequence[Kind]) -> tuple[Kind, ...]:
    return tuple(kind.in_trial(options.share) for kind in kinds)


def _schedule(options: argparse.Namespace, pictures: int) -> Schedule:
    return Schedule(_length(options, pictures), look_every=options.look_every, seed=SEED)


def _length(options: argparse.Namespace, pictures: int) -> int:
    return max(1, round(pictures * options.share))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints and logs")
    parser.add_argument("--out", type=Path, required=True, help="where the pipeline is written")
    parser.add_argument("--start", type=Path, help="an earlier folder, instead of the first stages")
    parser.add_argument("--decoder-pictures", type=int, default=52_000)
    parser.add_argument("--pictures", type=int, default=296_000, help="for the denoiser, small")
    parser.add_argument(
        "--wider-pictures",
        type=int,
        default=180_000,
        help="then in every size, in pictures of 64 x 64 (larger ones count as several)",
    )
    parser.add_argument("--share", type=float, default=1.0, help="of all lengths, for a trial")
    parser.add_argument("--look-every", type=int, default=56_000, help="pictures between scores")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
