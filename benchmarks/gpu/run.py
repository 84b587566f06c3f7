"""All GPU checks in one command, in about ten minutes on one H100: `make bench-gpu`.

Writes JSON with every sample, versions and date. Without a GPU it writes why nothing was measured.
`--device cpu --tiny` runs the same code on tiny models, to check the checks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
import torch

from benchmarks.environment import environment
from benchmarks.gpu.checks import described, profiled, served, stages
from benchmarks.gpu.sizes import architectures
from benchmarks.gpu.windows import windows
from engine.stages.random_model import write_model

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "diffusers", "transformers")
BATCHES = (1, 2, 4)
PARTS = ("handoffs", "stages", "engine")


class Report:
    """Collects what was measured; a check that fails is told and does not end the others."""

    def __init__(self, minutes: float) -> None:
        """Begin the time now."""
        self.content: dict[str, Any] = {}
        self._until_s = time.monotonic() + 60 * minutes

    @property
    def minutes_left(self) -> float:
        """Minutes until no further check begins."""
        return (self._until_s - time.monotonic()) / 60

    def check(self, name: str, act: Callable[[], Any]) -> Any:
        """Run one check if there is time left; return what it returns, None if it failed."""
        if self.minutes_left <= 0:
            self.content[name] = {"left_out": "no time left"}
            return None
        print(f"{name} ({self.minutes_left:.1f} minutes left)", flush=True)
        began = time.monotonic()
        try:
            result = act()
        except Exception as error:  # noqa: BLE001 - one broken check must not hide the others
            self.content[name] = {
                "failed": f"{type(error).__name__}: {error}"[:500],
                "where": traceback.format_exc(limit=-3),
            }
            return None
        finally:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        self.content[name] = {"took_s": time.monotonic() - began, "result": result}
        return result


def why_not(device: str) -> str | None:
    """Return why nothing can be measured here; None if it can."""
    if device == "cuda" and not torch.cuda.is_available():
        return (
            f"torch {torch.__version__} finds no CUDA device on this machine; run this where "
            "`nvidia-smi` lists one, with a CUDA build of torch."
        )
    return None


def engine_checks(report: Report, device: str, scratch: Path, *, tiny: bool) -> None:
    """Profile, serve, and serve under a memory cap: one model of a served family."""
    folder = scratch / "served"
    report.check("served model", lambda: write_model(folder, "sd3", seed=0))
    made = report.check(
        "engine profile",
        lambda: asyncio.run(profiled(folder, scratch, device, max(0.5, report.minutes_left / 3))),
    )
    if made is None:
        return
    path, report.content["engine profile"]["result"] = made
    report.check(
        "predicted against measured",
        lambda: asyncio.run(served(folder, path, scratch, device, None)),
    )
    report.check(
        "evict and reload under a cap",
        lambda: asyncio.run(served(folder, path, scratch, device, _cap(folder, path, device))),
    )
    report.content["engine model"] = "a random SD3 folder of test size" if tiny else "random SD3"


def _cap(folder: Path, profile: Path, device: str) -> int:
    """Return the least memory that holds each stage alone with its activations."""
    content = json.loads(profile.read_text(encoding="utf-8"))
    (model,) = content["models"].values()
    needs = [
        stage["weight_bytes"] + max(entry["peak_activation_bytes"] for entry in stage["entries"])
        for stage in model["stages"].values()
    ]
    reserve = content["node"]["reserve_bytes"] if device == "cuda" else 0
    del folder
    return max(needs) + reserve


def device_name(device: str) -> str:
    """Return what the figures are of."""
    return torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else "cpu"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print progress, write; return the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models: checks the checks")
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--only", help="one model of the stage checks")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gpu.json")
    args = parser.parse_args(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    report: dict[str, Any] = {
        "benchmark": "gpu",
        "tiny": args.tiny,
        "device": device_name(args.device),
        **environment(PACKAGES),
    }
    if (why := why_not(args.device)) is not None:
        report["not_measured"] = why
        print(f"nothing was measured: {why}")
    else:
        report["checks"] = measure(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"written to {args.out}")
    return report


def _shared_memory() -> str | None:
    """Return where hand-offs lie when they are served; None where there is no such folder."""
    folder = Path("/dev/shm")  # noqa: S108 - a memory file system, not a shared temp folder
    return str(folder) if folder.is_dir() else None


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run the parts that are asked for."""
    report, device = Report(args.minutes), torch.device(args.device)
    if "handoffs" in args.parts:
        with tempfile.TemporaryDirectory(dir=_shared_memory()) as scratch:
            report.check("hand-offs by window", lambda: windows(device, Path(scratch)))
    if "stages" in args.parts:
        for model in architectures(tiny=args.tiny):
            if args.only in (None, model.name):
                report.check(f"stages of {model.name}", lambda m=model: stages(m, device, BATCHES))
                report.content.setdefault("models", []).append(described(model))
    if "engine" in args.parts:
        with tempfile.TemporaryDirectory() as scratch:
            engine_checks(report, args.device, Path(scratch), tiny=args.tiny)
    return report.content


if __name__ == "__main__":
    main()
