"""Write the folder: `python -m models.training.motion.export --run FOLDER --out models/motion`.

Takes the averaged weights of the last checkpoints in the run folder and the autoencoder of what
they started from, and writes into the model card how long each part was trained.
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

FRAMES_OF = {FIRST_PART: "nine frames", SECOND_PART: "9 to 33 frames"}


def main() -> None:
    """Restore what was trained, one part after the other, and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="pipeline folder to write")
    parser.add_argument("--stills", type=Path, default=Path("models/shapes"))
    parser.add_argument("--start", type=Path, help="the folder given to the training, if any")
    options = parser.parse_args()
    pipeline = DiffusionPipeline.from_pretrained(options.start or options.stills)
    parts = [name for name in FRAMES_OF if (options.run / f"{name}.pt").exists()]
    if not parts:
        raise SystemExit(f"No checkpoint in {options.run}: train first")
    said = []
    for name in parts:
        stage = MotionStage(pipeline, torch.device("cpu"), name=name)
        position = resume(stage, options.run)
        unet, text_encoder = stage.smoothed()
        pipeline = folder.assemble(stage.tokenizer, text_encoder, unet, pipeline.vae.float())
        said.append(
            f"- {name}: {position.steps:,} steps of {stage.batch} clips of {FRAMES_OF[name]}, "
            f"{position.spent_s / 60:.0f} minutes of one thread, seed {SEED}"
        )
    folder.write(pipeline, options.out)
    said.append(f"- Exported on {card.machine()}.")
    card.replace_part(options.out / "README.md", "training", "\n".join(said))


if __name__ == "__main__":
    main()
