"""Larger pictures: `python -m models.training.larger --run FOLDER --stills models/shapes`.

The denoiser and the text encoder stay as they are: a picture of 128 x 128 or 256 x 256 has the same
latents as one of 64 x 64, and only the decoder differs. The first starts from that of the stills, the second from the first. The
folders, models/shapes-128 and models/shapes-256, hold an autoencoder of their own and links to the
other parts of the stills.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from models.training import card
from models.training.decoder import DecoderStage, reconstruction_psnr_db
from models.training.device import best_device
from models.training.links import link_parts
from models.training.loop import Position, Schedule, train

SEED = 13
BATCHES = {2: 4, 4: 2}
"""Pictures of a batch, by how much they are shrunk."""
PICTURES = {2: 12_000, 4: 1_200}
LOOKS = 5


def main() -> None:
    """Read the arguments, train both decoders one after the other and write both folders."""
    options = _options()
    torch.set_num_threads(options.threads)
    start = AutoencoderKL.from_pretrained(options.stills / "vae").float()
    for shrink in BATCHES:
        stage, position = _trained(options, shrink, start)
        start = stage.smoothed()
        folder = options.stills.parent / f"{options.stills.name}-{64 * shrink}"
        start.save_pretrained(folder / "vae", safe_serialization=True)
        link_parts(folder, options.stills, ("unet", "text_encoder", "tokenizer", "scheduler"))
        shutil.copyfile(options.stills / "model_index.json", folder / "model_index.json")
        said = (
            f"- {stage.name}: {position.steps:,} steps of {stage.batch} pictures, "
            f"{position.spent_s / 60:.0f} minutes of one thread, seed {SEED}\n"
            f"- Exported on {card.machine()}."
        )
        card.replace_part(folder / "README.md", "training", said)


def _trained(
    options: argparse.Namespace, shrink: int, start: AutoencoderKL
) -> tuple[DecoderStage, Position]:
    """Train one decoder; the last one begins with the edges that the one before has learned."""
    torch.manual_seed(SEED)
    device = best_device()
    stage = DecoderStage(device, BATCHES[shrink], shrink=shrink, start=start)
    pictures = max(1, round(PICTURES[shrink] * options.share))

    def look(_: Position) -> None:
        psnr_db = reconstruction_psnr_db(stage.smoothed(), device, 24, shrink)
        sys.stderr.write(f"\n{stage.name}: {psnr_db:.2f} dB on held-out drawings\n")

    schedule = Schedule(pictures, look_every=max(1, pictures // LOOKS), seed=SEED)
    return stage, train(stage, schedule, options.run, look)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints and logs")
    parser.add_argument("--stills", type=Path, default=Path("models/shapes"), help="start here")
    parser.add_argument("--share", type=float, default=1.0, help="of all lengths, for a trial")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
