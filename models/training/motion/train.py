"""Train the video model: `python -m models.training.motion.train --run FOLDER --out models/motion`.

Starts from the folder of the stills, resumes from its last checkpoint in the run folder, is
scored on held-out captions along the way, and writes the pipeline folder each time the score has
risen. Uses a GPU when there is one.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import StableDiffusionPipeline

from models.training.loop import Position, Schedule, train
from models.training.motion import folder
from models.training.motion.filming import Shooting, film_prompts
from models.training.motion.scoring import held_out_clip_prompts, judge_all, shares_of
from models.training.motion.stage import MotionStage

if TYPE_CHECKING:
    from diffusers import AnimateDiffPipeline, AutoencoderKL

SEED = 11
LOOK_SEED, LOOK_CLIPS = 30_000, 24
WORTH_SHIPPING = 0.3
"""Share of everything-right clips from which on a checkpoint is written out."""


@dataclass(slots=True)
class Watcher:
    """Scores the averaged model and ships it when it is the best so far."""

    stage: MotionStage
    autoencoder: AutoencoderKL
    run: Path
    out: Path

    def look(self, position: Position) -> None:
        """Judge held-out captions, log them, ship the folder if it has improved."""
        pipeline = self.pipeline()
        prompts = held_out_clip_prompts(LOOK_SEED, LOOK_CLIPS)
        with torch.autocast(pipeline.device.type, torch.bfloat16):
            clips = film_prompts(pipeline, [prompt.text for prompt in prompts], Shooting(batch=8))
        shares = shares_of(judge_all(prompts, clips))
        line = {"clips": position.steps * self.stage.batch, "spent_s": round(position.spent_s)}
        line |= {point: round(share.right / share.asked, 3) for point, share in shares.items()}
        if line["all"] >= max(WORTH_SHIPPING, self._best()):
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


def stage_of(
    stills: Path, device: torch.device, *, compiled: bool = False
) -> tuple[MotionStage, AutoencoderKL]:
    """A fresh stage on top of a folder of stills, and that folder's autoencoder."""
    torch.manual_seed(SEED)
    pipeline = StableDiffusionPipeline.from_pretrained(stills)
    return MotionStage(pipeline, device, compiled=compiled), pipeline.vae.float().eval().to(device)


def main() -> None:
    """Read the arguments and train."""
    options = _options()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stage, autoencoder = stage_of(options.stills, device, compiled=options.compile)
    options.run.mkdir(parents=True, exist_ok=True)
    schedule = Schedule(options.clips, save_every_s=120, look_every=options.look_every, seed=SEED)
    train(stage, schedule, options.run, Watcher(stage, autoencoder, options.run, options.out).look)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints and logs")
    parser.add_argument("--out", type=Path, required=True, help="where the pipeline is written")
    parser.add_argument("--stills", type=Path, default=Path("models/shapes"), help="start here")
    parser.add_argument("--clips", type=int, default=8_000)
    parser.add_argument("--look-every", type=int, default=2_000, help="clips between scores")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--compile", action="store_true", help="a fifth faster, needs a C++ compiler"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
