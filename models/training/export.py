"""Write the pipeline folder: `python -m models.training.export --run FOLDER --out models/shapes`.

Takes the averaged weights of the last checkpoints in the run folder, and writes into the model
card how long they were trained and how they scored along the way.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from models.training import assembly, card
from models.training.decoder import DecoderStage
from models.training.diffusion import DenoiserStage
from models.training.loop import Stage, resume
from models.training.train import SEED

_KINDS = ("single", "pair")
_POINTS = ("colour", "shape", "background", "position", "all")


def main() -> None:
    """Restore both stages and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="pipeline folder to write")
    options = parser.parse_args()
    device = torch.device("cpu")
    decoder, denoiser = DecoderStage(device), DenoiserStage(device)
    lines = [_restored(stage, options.run) for stage in (decoder, denoiser)]
    unet, text_encoder = denoiser.smoothed()
    pipeline = assembly.assemble(denoiser.tokenizer, text_encoder, unet, decoder.smoothed())
    assembly.write(pipeline, options.out)
    if (options.out / "README.md").exists():
        facts = "\n".join([*lines, f"- Exported on {card.machine()}."])
        text = f"{facts}\n\n{_scores(options.run)}"
        card.replace_part(options.out / "README.md", "training", text)


def _restored(stage: Stage, run: Path) -> str:
    """Restore a stage; how long it was trained, as a line of the card."""
    position = resume(stage, run)
    if not position.steps:
        raise SystemExit(f"No checkpoint of the {stage.name} in {run}: train it first")
    return (
        f"- {stage.name}: {position.steps:,} steps of about {stage.batch} pictures, "
        f"{position.spent_s / 60:.0f} minutes of one thread (scoring along the way included), "
        f"seed {SEED}"
    )


def _scores(run: Path) -> str:
    """The scores on held-out captions along the training, as a table."""
    looks = [json.loads(line) for line in (run / "looks.jsonl").read_text().splitlines()]
    header = ["pictures", "minutes"]
    header += [f"{kind}: {point}" for kind in _KINDS for point in _POINTS]
    rows = [
        [f"{look['pictures']:,}", f"{look['spent_s'] / 60:.0f}"]
        + [f"{look[kind][point]:.2f}" for kind in _KINDS for point in _POINTS]
        for look in looks
    ]
    return card.table(header, rows)


if __name__ == "__main__":
    main()
