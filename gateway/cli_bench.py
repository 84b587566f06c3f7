"""`trident bench`: replay requests against a server or an engine, with the simulator's summary."""

from __future__ import annotations

import asyncio
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import click
import msgspec
import structlog

from engine import EngineError, PipelineError
from gateway.bench import TargetError
from gateway.benching import Bench, Wish, switched
from gateway.cli_options import ABOVE_0, PATH, BytesType, need_places, switch_option
from gateway.comparing import compare, render_comparison, simulated
from gateway.machine import need_engine, need_memory
from gateway.refusal import RefusalError
from gateway.runner import capacity_bytes, need_policy, open_models, open_profile
from gateway.settings import SOLVERS, Settings
from schedulers.errors import SchedulerError
from schedulers.policies import LIVE_POLICIES, SwitchValue
from schedulers.profile import Profile
from schedulers.sim.events import EventFile, SimEvent
from schedulers.sim.rendering import render
from schedulers.sim.summary import Summary

_EVERYTHING: Final = 1 << 30


@click.command()
@click.option("--url", help="A running server; without it an engine starts here.")
@click.option("--model", "models", multiple=True, metavar="PATH", type=PATH, help="Repeatable.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--devices", type=click.IntRange(1, 64), default=1, show_default=True, metavar="N")
@click.option("--device-memory", type=BytesType(), metavar="SIZE", help="Limit per device.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="CPU threads per device.")
@click.option("--policy", type=click.Choice(LIVE_POLICIES), default="trident", show_default=True)
@click.option("--solver", type=click.Choice(SOLVERS), help="As of `serve` [greedy].")
@switch_option
@click.option("--step-batch", type=click.IntRange(1, 64), default=1, help="As of `serve` [1].")
@click.option("--profile", type=PATH, metavar="FILE", help="From `trident profile`.")
@click.option("--trace", type=PATH, metavar="FILE", help="CSV of requests to replay.")
@click.option("--rate", "rate_rps", type=ABOVE_0, help="Or Poisson requests per second.")
@click.option("--duration", "duration_s", type=ABOVE_0, default=60.0, help="Their seconds [60].")
@click.option("--rate-scale", type=ABOVE_0, default=1.0, show_default=True)
@click.option("--slo-scale", type=ABOVE_0, default=2.5, show_default=True)
@click.option("--steps", type=click.IntRange(1, 1000), help="Denoise steps of every request.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "json_path", type=PATH, metavar="OUT", help="Write figures here.")
@click.option("--events", type=PATH, metavar="OUT.jsonl", help="Everything that happens.")
@click.option("--compare-sim", is_flag=True, help="Simulate the same; needs --profile.")
def bench(
    *,
    url: str | None,
    models: tuple[Path, ...],
    device: str,
    devices: int,
    device_memory: int | None,
    threads: int | None,
    solver: str | None,
    switches: tuple[tuple[str, SwitchValue], ...],
    step_batch: int,
    profile: Path | None,
    json_path: Path | None,
    events: Path | None,
    compare_sim: bool,
    **wish: object,
) -> None:
    """Replay requests against a server by URL or an engine that starts here.

    Deadlines are multiples of what a request takes alone: by the profile, else as measured before
    the replay. Prints the summary that `trident simulate` prints, measured.
    """
    wanted = msgspec.convert(wish, Wish)
    _need_sense(url, models, profile, wanted, compare_sim=compare_sim)
    need_places(json_path, events)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("warning"))
    with ExitStack() as stack:
        data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = Settings(
            models=models,
            data_dir=data_dir,
            device="cuda" if device == "cuda" else "cpu",
            devices=devices,
            device_memory_bytes=device_memory,
            threads_per_device=threads,
            solver=solver,
            switches=dict(switches),
            step_batch=step_batch,
            profile=profile,
            policy=wanted.policy,
            max_concurrent=_EVERYTHING,
            embedding_cache_bytes=0,  # a simulated prompt is always a new one
        )
        try:
            specs = open_models(models, device=device) if models else ()
            profiled = open_profile(settings, specs)
            need_policy(settings, specs, profiled)
            need_memory(capacity_bytes(settings), specs)
            run = Bench(settings, specs, profiled, wanted, _progress)
            observers: list[Callable[[SimEvent], None]] = []
            if events is not None:
                observers.append(stack.enter_context(EventFile(events)).write)
            live = asyncio.run(run.remote(url, observers) if url else run.embedded(observers))
            click.echo(render(live))
            content: object = live
            if compare_sim and profiled is not None:
                content = _compare(live, profiled, run, wanted)
        except (SchedulerError, PipelineError, EngineError, TargetError, TimeoutError) as error:
            raise RefusalError(str(error) or "The engine did not become ready.") from error
    if json_path is not None:
        text = msgspec.json.format(msgspec.json.encode(content), indent=2)
        json_path.write_bytes(text + b"\n")


def _compare(live: Summary, profile: Profile, run: Bench, wanted: Wish) -> object:
    said = simulated(
        profile,
        run.rows,
        devices=run.settings.devices,
        memory_bytes=run.settings.device_memory_bytes,
        policy=wanted.policy,
        slo_scale=wanted.slo_scale,
        workload=wanted.label,
        solver=run.settings.solver,
        switches=switched(run.settings),
    )
    comparison = compare(live, said)
    click.echo("\n" + render(said) + "\n\n" + render_comparison(comparison))
    return comparison


def _need_sense(
    url: str | None,
    models: tuple[Path, ...],
    profile: Path | None,
    wanted: Wish,
    *,
    compare_sim: bool,
) -> None:
    if (wanted.trace is None) == (wanted.rate_rps is None):
        raise RefusalError("Say what to replay: either --trace FILE or --rate R.")
    if url is None and not models:
        raise RefusalError("Say whom to ask: --url URL, or --model PATH to start an engine here.")
    if compare_sim and profile is None:
        raise RefusalError("--compare-sim needs the --profile that the simulation runs on.")
    if (profile is not None or wanted.rate_rps is not None) and not models:
        raise RefusalError(
            "Give the --model folders: sizes, steps and fingerprints are read there."
        )
    if url is None:
        need_engine()


@contextmanager
def _progress(duration_s: float) -> Iterator[Callable[[float], None]]:
    """Show a bar on a terminal: how far requests have been sent."""
    hidden, length = not sys.stderr.isatty(), max(1, math.ceil(duration_s))
    with click.progressbar(
        length=length, label="replay", file=sys.stderr, hidden=hidden, width=30
    ) as bar:

        def on_progress(now_s: float) -> None:
            bar.update(min(length, int(now_s)) - bar.pos)

        yield on_progress
