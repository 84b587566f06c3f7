"""Write the folder: `python -m models.training.motion.export --run FOLDER --out models/motion`.

Takes the averaged weights of the last checkpoint in the run folder and the autoencoder of
what it started from, and writes into the model card how long they were trained.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from models.training import card
from models.training.loop import resume
from models.training.motion import folder
from models.training.motion.stage import MotionStage
from models.training.motion.train import FIRST_PART, SECOND_PART, SEED


def main() -> None:
    """Restore the stage and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="pipeline folder to write")
    parser.add_argument("--stills", type=Path, default=Path("models/shapes"))
    parser.add_argument("--start", type=Path, help="the folder given to the training, if any")
    options = parser.parse_args()
    start = DiffusionPipeline.from_pretrained(options.start or options.stills)
    autoencoder = start.vae.float()
    name = SECOND_PART if (options.run / f"{SECOND_PART}.pt").exists() else FIRST_PART
    stage = MotionStage(start, torch.device("cpu"), name=name)
    position = resume(stage, options.run)
    if not position.steps:
        raise SystemExit(f"No checkpoint of the {stage.name} stage in {options.run}: train first")
    unet, text_encoder = stage.smoothed()
    pipeline = folder.assemble(stage.tokenizer, text_encoder, unet, autoencoder)
    folder.write(pipeline, options.out)
    said = (
        f"- {stage.name}: {position.steps:,} steps of {stage.batch} clips of nine frames of 64 x 64 "
        f"or as many pixels, {position.spent_s / 60:.0f} minutes of one thread, seed {SEED}\n"
        f"- Exported on {card.machine()}."
    )
    card.replace_part(options.out / "README.md", "training", said)


if __name__ == "__main__":
    main()
