"""Write the pipeline folder: `python -m models.training.export --run FOLDER --out models/shapes`.

Takes the averaged weights of the last checkpoint of the wider training, and writes into the model
card how long it took and how it scored along the way. What it started from is read again: from
`--start`, or from the checkpoints of the first stages in the run folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from models.training import assembly, card
from models.training.decoder import DecoderStage
from models.training.diffusion import WIDER, DenoiserStage
from models.training.looks import WIDER_KINDS, looks_of
from models.training.loop import Stage, resume
from models.training.train import SEED

_POINTS = ("shape", "all")


def main() -> None:
    """Restore the stages and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--start", type=Path, help="the folder that training began with")
    parser.add_argument("--out", type=Path, required=True, help="pipeline folder to write")
    options = parser.parse_args()
    device = torch.device("cpu")
    if options.start is None:
        decoder = DecoderStage(device)
        lines = [_restored(decoder, options.run), _restored(DenoiserStage(device), options.run)]
        autoencoder = decoder.smoothed()
    else:
        lines = []
        start = StableDiffusionPipeline.from_pretrained(options.start)
        autoencoder = start.vae.float()
    stage = DenoiserStage(device, WIDER, name="wider")
    lines.append(_restored(stage, options.run))
    unet, text_encoder = stage.smoothed()
    pipeline = assembly.assemble(stage.tokenizer, text_encoder, unet, autoencoder)
    assembly.write(pipeline, options.out)
    facts = "\n".join([*lines, f"- Exported on {card.machine()}."])
    card.replace_part(options.out / "README.md", "training", f"{facts}\n\n{_scores(options.run)}")


def _restored(stage: Stage, run: Path) -> str:
    """Restore a stage; how long it was trained, as a line of the card."""
    position = resume(stage, run)
    if not position.steps:
        raise SystemExit(f"No checkpoint of the {stage.name} in {run}: train it first")
    return (
        f"- {stage.name}: {position.steps:,} steps of about {stage.batch} pictures of 64 x 64 or as "
        f"many pixels, {position.spent_s / 60:.0f} minutes of one thread, seed {SEED}"
    )


def _scores(run: Path) -> str:
    """The scores on held-out captions along the training, as a table."""
    columns = [(kind.name, point) for kind in WIDER_KINDS for point in _POINTS]
    header = ["pictures", "minutes", *(f"{kind}: {point}" for kind, point in columns)]
    rows = [
        [f"{look['pictures']:,}", f"{look['spent_s'] / 60:.0f}"]
        + [f"{look[kind][point]:.2f}" for kind, point in columns]
        for look in looks_of(run, "wider")
    ]
    return card.table(header, rows) if rows else ""


if __name__ == "__main__":
    main()
