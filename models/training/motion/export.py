"""Write the folder: `python -m models.training.motion.export --run FOLDER --out models/motion`.

Takes the averaged weights of the last checkpoint in the run folder and the autoencoder of the
stills, and writes into the model card how long they were trained.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from models.training import card
from models.training.loop import resume
from models.training.motion import folder
from models.training.motion.train import SEED, stage_of


def main() -> None:
    """Restore the stage and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="pipeline folder to write")
    parser.add_argument("--stills", type=Path, default=Path("models/shapes"))
    options = parser.parse_args()
    stage, autoencoder = stage_of(options.stills, torch.device("cpu"))
    position = resume(stage, options.run)
    if not position.steps:
        raise SystemExit(f"No checkpoint of the {stage.name} stage in {options.run}: train first")
    unet, text_encoder = stage.smoothed()
    pipeline = folder.assemble(stage.tokenizer, text_encoder, unet, autoencoder)
    folder.write(pipeline, options.out)
    said = (
        f"- {position.steps:,} steps of {stage.batch} clips ({position.steps * stage.batch:,} "
        f"clips of nine frames), {position.spent_s / 60:.0f} minutes of one thread (scoring along "
        f"the way included), seed {SEED}, on top of the trained stills\n"
        f"- Exported on {card.machine()}."
    )
    if (options.out / "README.md").exists():
        card.replace_part(options.out / "README.md", "training", said)


if __name__ == "__main__":
    main()
