"""How far a diffuse or a decode at degree 2, 4 or 8 is from one at degree 1, per model.

Members are threads of this process with a copy of the model each, connected over gloo as worker
processes are. Figures are of the largest difference of two final latents as a share of the largest
number in the latent, in float32 on one thread each, over all seeds. Models that do not ship are small
ones with random weights. Run as `make bench-degrees`, or with `ARGS="--help"`.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine import GenerationRequest, ModelId, RequestId, Shape, open_pipeline
from engine.messages import Seat
from engine.stages.base import Job, Stage, Undisturbed
from engine.stages.groups import Groups
from engine.stages.random_model import write_model
from engine.stages.registry import load_stage
from engine.stages.team import Solo, Team
from engine.stages.tiles import tiles_shared
from engine.types import MediaFormat, NodeId, StageKey, StageKind, StageTask, TaskId

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("flux", "sd3", "sd", "animatediff", "shapes", "motion")
FILMS = ("animatediff", "motion")
PACKAGES = ("torch", "diffusers")
CPU = torch.device("cpu")


def a_task(model: str, kind: StageKind, seed: int, guidance: float, steps: int) -> StageTask:
    """Return a task of a picture of 64x96, or of a film of nine frames of 64x64."""
    film = model in FILMS
    request = GenerationRequest(
        id=RequestId("r"),
        model=ModelId(model),
        prompt="a red circle on a blue background",
        shape=Shape(64, 64, 9) if film else Shape(64, 96),
        steps=steps,
        guidance_scale=guidance,
        seed=seed,
        arrival_s=0.0,
        deadline_s=1.0,
        media=MediaFormat.MP4 if film else MediaFormat.PNG,
    )
    return StageTask(
        id=TaskId("t"),
        request=request,
        node=NodeId("n"),
        stage=StageKey(request.model, kind),
        image_index=0,
        inputs=(),
        sequence=0,
        attempt=1,
        ready_s=0.0,
    )


def together(degree: int, work: Callable[[Team], Tensor]) -> list[Tensor]:
    """Run `work` on every member of a team that meets over gloo."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(degree) as pool:
        members = [Groups(Path(folder), CPU) for _ in range(degree)]

        def member(rank: int) -> Tensor:
            return work(members[rank].team(Seat("team", rank, degree)))

        results = list(pool.map(member, range(degree)))
        for groups in members:
            groups.leave("team")
    return results


def final_latents(stage: Stage, job: Job, team: Team) -> Tensor:
    """Return what a diffuse ends with."""
    return stage.run([job], team)[0].tensors["latents"]


def measure(folder: Path, model: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row per guidance and degree of one model."""
    spec = open_pipeline(folder)
    encode = load_stage(folder, spec.family, StageKind.ENCODE, CPU)
    diffuse = load_stage(folder, spec.family, StageKind.DIFFUSE, CPU)
    rows = []
    for guidance in (1.0, 3.5):
        worst: dict[int, float] = dict.fromkeys(spec.degrees[1:], 0.0)
        for seed in range(args.seeds):
            asked = seed, guidance, args.steps
            task = a_task(model, StageKind.ENCODE, *asked)
            [encoded] = encode.run([Job(task, {}, Undisturbed())], Solo())
            job = Job(a_task(model, StageKind.DIFFUSE, *asked), encoded.tensors, Undisturbed())
            alone = final_latents(diffuse, job, Solo())
            for degree in spec.degrees[1:]:
                found = together(
                    degree,
                    lambda team, job=job: final_latents(copy.deepcopy(diffuse), job, team),  # type: ignore[misc] - bound now
                )
                assert all(torch.equal(member, found[0]) for member in found)
                difference = (found[0] - alone).abs().max() / alone.abs().max()
                worst[degree] = max(worst[degree], float(difference))
        rows += [
            {"model": model, "family": spec.family, "guidance": guidance, "degree": k, "worst": v}
            for k, v in worst.items()
        ]
    return rows


def measure_tiles(folder: Path, model: str) -> list[dict[str, Any]]:
    """Return how far a picture decoded in tiles is from itself at other degrees, and from a whole one.

    As a share of the range of pixels; tiles are of the autoencoder's own size, the latent is noise.
    """
    spec = open_pipeline(folder)
    decode: Any = load_stage(folder, spec.family, StageKind.DECODE, CPU)
    vae, draw = decode._pipe.vae, torch.Generator().manual_seed(7)  # noqa: SLF001 - as the stage uses it
    side = 2 * vae.tile_latent_min_size
    latents = torch.randn(1, vae.config.latent_channels, side, side, generator=draw)

    @torch.inference_mode()
    def decoded(team: Team) -> Tensor:
        mine = copy.deepcopy(vae)
        with tiles_shared(mine, team):
            return mine.decode(latents, return_dict=False)[0].clone()

    with torch.inference_mode():
        whole = vae.decode(latents, return_dict=False)[0]
    alone = decoded(Solo())
    rows = [{"degree": "whole", "worst": _of_range(whole, alone)}]
    rows += [{"degree": k, "worst": _of_range(together(k, decoded)[0], alone)} for k in (2, 4, 8)]
    return [{"model": model, "family": spec.family, "stage": "decode", **row} for row in rows]


def _of_range(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / (expected.max() - expected.min()))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/degrees.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for model in args.models:
            folder = ROOT / "models" / model
            if not folder.exists():
                folder = Path(scratch) / model
                write_model(folder, model, seed=1)
            rows += measure(folder, model, args)
            if model not in FILMS:
                rows += measure_tiles(folder, model)
            print(json.dumps(rows[-1]), flush=True)
    args.out.write_text(
        json.dumps(
            {
                "date": datetime.now(UTC).date().isoformat(),
                "machine": f"{platform.machine()}, float32, one thread per member",
                "versions": {name: version(name) for name in PACKAGES},
                "steps": args.steps,
                "seeds": args.seeds,
                "rows": rows,
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
