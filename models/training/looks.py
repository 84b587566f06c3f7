"""Look at a denoiser while it trains: score it on held-out captions and log what was seen.

Also a command, `python -m models.training.looks --run FOLDER --start FOLDER`, for looking at the last
checkpoint of the wider training from a second process, so that training does not wait.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import StableDiffusionPipeline

from models.training import assembly
from models.training.diffusion import WIDER, DenoiserStage
from models.training.drawing import Sampling, draw_prompts
from models.training.loop import Position, resume
from models.training.scoring import held_out_prompts, later_prompts, score, styled_prompts

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

LOOK_SEED = 20_000
WORTH_SHIPPING = 0.5
"""Mean share of everything-right captions from which on a checkpoint is written out."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of caption to look at, how many, and at which size."""

    name: str
    singles: int = 0
    pairs: int = 0
    styled: int = 0
    later: int = 0
    side_px: int = 64

    def in_trial(self, share: float) -> Kind:
        """As many captions as a trial of this share of the training deserves."""
        counts = (self.singles, self.pairs, self.styled, self.later)
        return Kind(self.name, *(trial_count(count, share) for count in counts), self.side_px)


def trial_count(count: int, share: float) -> int:
    """All of them from a hundredth of the training on, at least one of any."""
    return min(count, max(1, round(100 * share * count)))


FIRST_KINDS = (Kind("single", singles=64), Kind("pair", pairs=48))
WIDER_KINDS = (
    Kind("single", singles=48),
    Kind("pair", pairs=48),
    Kind("styled", styled=32),
    Kind("later shapes", later=24),
    Kind("pair at 96", pairs=16, side_px=96),
)


@dataclass(slots=True)
class Watcher:
    """Scores the smoothed denoiser and ships it when it is the best so far."""

    stage: DenoiserStage
    autoencoder: AutoencoderKL
    run: Path
    out: Path | None
    kinds: tuple[Kind, ...] = FIRST_KINDS

    def look(self, position: Position) -> None:
        """Judge held-out captions, log the scores, ship the folder if they have improved."""
        pipeline = self.pipeline()
        line: dict[str, Any] = {
            "stage": self.stage.name,
            "pictures": position.steps * self.stage.batch,
            "spent_s": round(position.spent_s),
        }
        line |= {kind.name: _scores(pipeline, kind) for kind in self.kinds}
        worth = sum(line[kind.name]["all"] for kind in self.kinds) / len(self.kinds)
        if self.out and worth > max(WORTH_SHIPPING, self._best()):
            assembly.write(pipeline, self.out)
            line["shipped"] = worth
        with (self.run / "looks.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        sys.stderr.write("\n" + json.dumps(line) + "\n")

    def pipeline(self) -> StableDiffusionPipeline:
        """The averaged model as it would ship."""
        unet, text_encoder = self.stage.smoothed()
        return assembly.assemble(self.stage.tokenizer, text_encoder, unet, self.autoencoder)

    def _best(self) -> float:
        looks = looks_of(self.run, self.stage.name)
        return max((look.get("shipped", 0.0) for look in looks), default=0.0)


def looks_of(run: Path, stage: str) -> list[dict[str, Any]]:
    """What was logged of one stage, in order."""
    path = run / "looks.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [look for look in map(json.loads, lines) if look["stage"] == stage]


def _scores(pipeline: StableDiffusionPipeline, kind: Kind) -> dict[str, float]:
    prompts = held_out_prompts(LOOK_SEED, kind.singles, kind.pairs)
    prompts += styled_prompts(LOOK_SEED, kind.styled) + later_prompts(LOOK_SEED, kind.later)
    batch = max(1, 16 * 64 * 64 // kind.side_px**2)
    sampling = Sampling(width_px=kind.side_px, height_px=kind.side_px, batch=batch)
    pictures = draw_prompts(pipeline, [prompt.text for prompt in prompts], sampling)
    shares = score(prompts, pictures)
    return {
        name: round(share.right / share.asked, 3) for name, share in shares.items() if share.asked
    }


def main() -> None:
    """Score the last checkpoint of the wider training, without shipping it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints and logs")
    parser.add_argument("--start", type=Path, required=True, help="folder that training began with")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    start = StableDiffusionPipeline.from_pretrained(options.start)
    autoencoder = start.vae
    stage = DenoiserStage(torch.device("cpu"), WIDER, start=start, name="wider")
    position = resume(stage, options.run)
    Watcher(stage, autoencoder, options.run, None, WIDER_KINDS).look(position)


if __name__ == "__main__":
    main()
