"""Train the shapes model: `python -m models.training.train --run FOLDER --out models/shapes`.

First the decoder, then the denoiser; both resume from their last checkpoint in the run folder.
Along the way the denoiser is scored on held-out captions, and the pipeline folder is written each
time the score has risen. Uses a GPU when there is one.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from models.training import assembly
from models.training.decoder import DecoderStage, reconstruction_psnr_db
from models.training.diffusion import DenoiserStage
from models.training.drawing import Sampling, draw_prompts
from models.training.loop import Position, Schedule, train
from models.training.scoring import held_out_prompts, score

SEED = 7
LOOK_SEED = 20_000
LOOK_SINGLES, LOOK_PAIRS = 64, 48
WORTH_SHIPPING = 0.5
"""Share of everything-right single objects from which on a checkpoint is written out."""


@dataclass(slots=True)
class Watcher:
    """Scores the smoothed denoiser and ships it when it is the best so far."""

    stage: DenoiserStage
    decoder: DecoderStage
    run: Path
    out: Path

    def look(self, position: Position) -> None:
        """Judge 112 held-out captions, log them, ship the folder if it has improved."""
        unet, text_encoder = self.stage.smoothed()
        pipeline = assembly.assemble(
            self.stage.tokenizer, text_encoder, unet, self.decoder.smoothed()
        )
        prompts = held_out_prompts(LOOK_SEED, LOOK_SINGLES, LOOK_PAIRS)
        pictures = draw_prompts(pipeline, [prompt.text for prompt in prompts], Sampling())
        singles = score(prompts[:LOOK_SINGLES], pictures[:LOOK_SINGLES])
        pairs = score(prompts[LOOK_SINGLES:], pictures[LOOK_SINGLES:])
        line = {
            "pictures": position.steps * self.stage.batch,
            "spent_s": round(position.spent_s),
            "single": {k: round(v.right / v.asked, 3) for k, v in singles.items() if v.asked},
            "pair": {k: round(v.right / v.asked, 3) for k, v in pairs.items() if v.asked},
        }
        worth = singles["all"].right / singles["all"].asked + pairs["all"].right / LOOK_PAIRS
        if worth > max(WORTH_SHIPPING, self._best()):
            assembly.write(pipeline, self.out)
            line["shipped"] = worth
        with (self.run / "looks.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        sys.stderr.write("\n" + json.dumps(line) + "\n")

    def _best(self) -> float:
        path = self.run / "looks.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return max((json.loads(line).get("shipped", 0.0) for line in lines), default=0.0)


def main() -> None:
    """Read the arguments and train both stages."""
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    decoder = DecoderStage(device)

    def look_at_decoder(_: Position) -> None:
        psnr_db = reconstruction_psnr_db(decoder.smoothed(), device)
        sys.stderr.write(f"\ndecoder: {psnr_db:.2f} dB on held-out drawings\n")

    schedule = Schedule(options.decoder_pictures, look_every=13_000, seed=SEED)
    train(decoder, schedule, options.run, look_at_decoder)
    denoiser = DenoiserStage(device)
    schedule = Schedule(options.pictures, look_every=options.look_every, seed=SEED)
    watcher = Watcher(denoiser, decoder, options.run, options.out)
    train(denoiser, schedule, options.run, watcher.look)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints and logs")
    parser.add_argument("--out", type=Path, required=True, help="where the pipeline is written")
    parser.add_argument("--pictures", type=int, default=296_000, help="for the denoiser")
    parser.add_argument("--decoder-pictures", type=int, default=52_000)
    parser.add_argument("--look-every", type=int, default=32_000, help="pictures between scores")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
