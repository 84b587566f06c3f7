"""Train the video model: `python -m models.training.motion.train --run FOLDER --out models/motion`.

Starts from the folder of the stills: straight movements in nine frames of 64 x 64, then bounces and
up to 33 frames too. With `--start` the first part is taken from an earlier folder. Resumes from its
last checkpoint in the run folder, is scored on held-out captions along the way, and writes the
pipeline folder each time the score has risen.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AnimateDiffPipeline, StableDiffusionPipeline

from models.training.device import best_device
from models.training.looks import trial_count
from models.training.loop import Position, Schedule, train
from models.training.motion import folder
from models.training.motion.filming import Shooting, film_prompts
from models.training.motion.movements import BOUNCING, MOVING
from models.training.motion.scoring import held_out_clip_prompts, judge_all, shares_of
from models.training.motion.stage import MotionStage

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

SEED = 11
FIRST_PART, SECOND_PART = "motion", "longer"
"""Names of the two stages: straight movements in short clips, then bounces and longer clips too."""
LOOK_SEED, LOOK_CLIPS = 30_000, 24
WORTH_SHIPPING = 0.3
"""Share of everything-right clips from which on a checkpoint is written out."""


@dataclass(slots=True)
class Watcher:
    """Scores the averaged model and ships it when it is the best so far."""

    stage: MotionStage
    autoencoder: AutoencoderKL
    run: Path
    out: Path | None
    captions: int = LOOK_CLIPS

    def look(self, position: Position) -> None:
        """Judge held-out captions, log them, ship the folder if it has improved."""
        pipeline = self.pipeline()
        movements = MOVING if self.stage.name == FIRST_PART else (*MOVING, BOUNCING)
        prompts = held_out_clip_prompts(LOOK_SEED, self.captions, movements)
        with torch.autocast(pipeline.device.type, torch.bfloat16):
            clips = film_prompts(pipeline, [prompt.text for prompt in prompts], Shooting(batch=8))
        shares = shares_of(judge_all(prompts, clips))
        line: dict[str, Any] = {
            "stage": self.stage.name,
            "clips": position.steps * self.stage.batch,
            "spent_s": round(position.spent_s),
        }
        line |= {point: round(share.right / share.asked, 3) for point, share in shares.items()}
        if self.out and line["all"] >= max(WORTH_SHIPPING, self._best()):
            folder.write(pipeline, self.out)
            line["shipped"] = line["all"]
        with (self.run / "looks.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        sys.stderr.write("\n" + json.dumps(line) + "\n")

    def pipeline(self) -> AnimateDiffPipeline:
        """The averaged model as it would ship."""
        unet, text_encoder = self.stage.smoothed()
        return folder.assemble(self.stage.tokenizer, text_encoder, unet, self.autoencoder)

    def _best(self) -> float:
        path = self.run / "looks.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return max((json.loads(line).get("shipped", 0.0) for line in lines), default=0.0)


def main() -> None:
    """Read the arguments and train."""
    options = _options()
    torch.set_num_threads(options.threads)
    options.run.mkdir(parents=True, exist_ok=True)
    start = _first_trained(options)
    if not options.longer_clips:
        return
    autoencoder = start.vae.float().eval().to(best_device())
    stage = _stage(start, SECOND_PART)
    count = trial_count(LOOK_CLIPS, options.share)
    watcher = Watcher(stage, autoencoder, options.run, options.out, count)
    train(stage, _schedule(options, options.longer_clips), options.run, watcher.look)


def _first_trained(options: argparse.Namespace) -> AnimateDiffPipeline:
    """What the second part begins with: an earlier folder, or the first part, trained here."""
    if options.start is not None:
        return AnimateDiffPipeline.from_pretrained(options.start)
    stills = StableDiffusionPipeline.from_pretrained(options.stills)
    autoencoder = stills.vae.float().eval().to(best_device())
    stage = _stage(stills, FIRST_PART)
    out = None if options.longer_clips else options.out
    watcher = Watcher(stage, autoencoder, options.run, out, trial_count(LOOK_CLIPS, options.share))
    train(stage, _schedule(options, options.clips), options.run, watcher.look)
    return watcher.pipeline()


def _stage(start: StableDiffusionPipeline | AnimateDiffPipeline, name: str) -> MotionStage:
    torch.manual_seed(SEED)
    return MotionStage(start, best_device(), name=name)


def _schedule(options: argparse.Namespace, clips: int) -> Schedule:
    length = max(1, round(clips * options.share))
    return Schedule(length, save_every_s=120, look_every=options.look_every, seed=SEED)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints and logs")
    parser.add_argument("--out", type=Path, required=True, help="where the pipeline is written")
    parser.add_argument("--stills", type=Path, default=Path("models/shapes"), help="start here")
    parser.add_argument("--start", type=Path, help="an earlier folder, instead of the first part")
    parser.add_argument("--clips", type=int, default=8_000, help="straight, nine frames of 64 x 64")
    parser.add_argument(
        "--longer-clips", type=int, default=6_800, help="then of 9 to 33 frames; none if 0"
    )
    parser.add_argument("--share", type=float, default=1.0, help="of all lengths, for a trial")
    parser.add_argument("--look-every", type=int, default=3_500, help="clips between scores")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
