"""`trident bench`: replay requests against a server or an engine, with the simulator's summary."""

from __future__ import annotations

import asyncio
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import httpx
import msgspec
import structlog

from engine import EngineError, ModelId, PipelineError, Shape, SystemClock
from gateway.bench import (
    EngineTarget,
    Replay,
    ServerTarget,
    TargetError,
    ToldTarget,
    steady_rows,
    until_ready,
)
from gateway.cli_options import ABOVE_0, PATH, BytesType, need_places
from gateway.comparing import changes, compare, render_comparison, simulated
from gateway.embedded import EmbeddedEngine
from gateway.machine import need_engine, need_gpus
from gateway.refusal import RefusalError
from gateway.runner import Telemetry, live_knobs, open_models, open_profile
from gateway.settings import Settings
from observability.meters import Meters
from observability.monitor import StageMonitor
from observability.tracing import build_provider
from schedulers.cost import CostModel
from schedulers.errors import SchedulerError
from schedulers.policies import LIVE_POLICIES, SwitchValue
from schedulers.profile import Profile
from schedulers.sim.chronicle import Chronicle
from schedulers.sim.config import RunFacts
from schedulers.sim.demand import TraceDemand
from schedulers.sim.events import EventFile, SimEvent
from schedulers.sim.experiment import versions
from schedulers.sim.summary import RunIdentity, Summary, SummaryBuilder, render
from schedulers.sim.traces import TraceRow

if TYPE_CHECKING:
    from engine import PipelineSpec

_EVERYTHING: Final = 1 << 30
_KEY_VARIABLE: Final = "TRIDENT_API_KEY"


class _Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What is replayed, and how it is judged."""

    trace: Path | None
    rate_rps: float | None
    duration_s: float
    rate_scale: float
    slo_scale: float
    steps: int | None
    seed: int
    policy: str

    def rows(
        self, models: Iterable[str], classes: list[tuple[ModelId, Shape, int]]
    ) -> tuple[TraceRow, ...]:
        """Return the requests: of the trace, or drawn from `classes`."""
        if self.trace is not None:
            demand = TraceDemand(
                self.trace, models=tuple(models), rate_scale=self.rate_scale, steps=self.steps
            )
            return tuple(demand.rows())
        kinds = [(model, shape, self.steps or steps) for model, shape, steps in classes]
        rate_rps = self.rate_scale * (self.rate_rps or 1.0)
        rows = steady_rows(kinds, rate_rps=rate_rps, duration_s=self.duration_s, seed=self.seed)
        if not rows:
            raise RefusalError("No request comes in that time; raise --rate or --duration.")
        return tuple(rows)

    @property
    def label(self) -> str:
        """Return what the summary calls it."""
        if self.trace is not None:
            return self.trace.name
        return f"poisson {self.rate_rps or 1.0:g}/s for {self.duration_s:g} s"


@click.command()
@click.option("--url", help="A running server; without it an engine starts here.")
@click.option("--model", "models", multiple=True, metavar="PATH", type=PATH, help="Repeatable.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--devices", type=click.IntRange(1, 64), default=1, show_default=True, metavar="N")
@click.option("--device-memory", type=BytesType(), metavar="SIZE", help="Limit per device.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="CPU threads per device.")
@click.option("--policy", type=click.Choice(LIVE_POLICIES), default="trident", show_default=True)
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
    wanted = msgspec.convert(wish, _Wish)
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
            step_batch=step_batch,
            profile=profile,
            policy=wanted.policy,
            max_concurrent=_EVERYTHING,
            embedding_cache_bytes=0,  # a simulated prompt is always a new one
        )
        try:
            specs = open_models(models, device=device) if models else ()
            profiled = open_profile(settings, specs)
            run = _Run(settings, specs, profiled, wanted)
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


def _compare(live: Summary, profile: Profile, run: _Run, wanted: _Wish) -> object:
    said = simulated(
        profile,
        run.rows,
        devices=run.settings.devices,
        memory_bytes=run.settings.device_memory_bytes,
        policy=wanted.policy,
        slo_scale=wanted.slo_scale,
        workload=wanted.label,
        knobs=live_knobs(run.settings.step_batch),
    )
    comparison = compare(live, said)
    click.echo("\n" + render(said) + "\n\n" + render_comparison(comparison))
    return comparison


def _need_sense(
    url: str | None,
    models: tuple[Path, ...],
    profile: Path | None,
    wanted: _Wish,
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


class _Run:
    """One replay.

    Attributes:
        rows: what was replayed; known once it runs.
    """

    def __init__(
        self,
        settings: Settings,
        specs: tuple[PipelineSpec, ...],
        profile: Profile | None,
        wanted: _Wish,
    ) -> None:
        self.settings, self._specs, self._wanted = settings, specs, wanted
        self.rows: tuple[TraceRow, ...] = ()
        self._profile, self._builder = profile, SummaryBuilder()
        self._is_over = False
        self._truth = None if profile is None else CostModel(specs, profile, learn=False)

    async def embedded(self, observers: list[Callable[[SimEvent], None]]) -> Summary:
        """Replay against an engine that is started for it."""
        need_gpus(self.settings.device, self.settings.devices)
        monitor = StageMonitor(window_s=self.settings.planner_window_s)
        telemetry = Telemetry(build_provider(processors=[monitor]), monitor, Meters())
        engine = EmbeddedEngine(self.settings, telemetry, self._told(observers), waits=True)
        self.rows = self._wanted.rows(engine.specs, self._classes())
        await engine.start()
        try:
            await until_ready(engine)
            replay, stop = self._replay(EngineTarget(engine))
            with stop:
                await replay.warm_up()
                engine.begin_history()
                began = time.perf_counter()
                await replay.run()
                facts = engine.facts(time.perf_counter() - began)
                self._is_over = True
        finally:
            await engine.close()
        return self._summary(facts)

    async def remote(self, url: str, observers: list[Callable[[SimEvent], None]]) -> Summary:
        """Replay against a server."""
        key = os.environ.get(_KEY_VARIABLE)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits) as client:
            target = await ServerTarget.connect(client)
            chronicle = Chronicle(SystemClock(), {}, self._told(observers))
            self.rows = self._wanted.rows(target.models, self._classes())
            replay, stop = self._replay(target)
            with stop:
                await replay.warm_up()
                chronicle.begin()
                began = time.perf_counter()
                await replay.run(ToldTarget(target, chronicle))
                wall_s = time.perf_counter() - began
        facts = RunFacts(
            decisions=0,
            decision_ms_p50=0.0,
            decision_ms_p99=0.0,
            switches_count=0,
            preemptions=0,
            resizes=0,
            wall_s=wall_s,
            simulated_s=wall_s,
        )
        return self._summary(facts)

    def _told(self, observers: list[Callable[[SimEvent], None]]) -> Callable[[SimEvent], None]:
        def tell(event: SimEvent) -> None:
            if self._is_over:
                return  # devices that go because the engine is closed
            self._builder.add(event)
            for observe in observers:
                observe(event)

        return tell

    def _classes(self) -> list[tuple[ModelId, Shape, int]]:
        """Return the sizes of the profile, else the default ones; none for a server's models."""
        profiled = {} if self._profile is None else self._profile.models
        return [
            (spec.id, shape, spec.default_steps)
            for spec in self._specs
            for shape in (
                profiled[spec.id].shapes if spec.id in profiled else (spec.default_shape,)
            )
        ]

    def _replay(self, target: EngineTarget | ServerTarget) -> tuple[Replay, ExitStack]:
        stack = ExitStack()
        on_progress = stack.enter_context(_progress(self.rows[-1].arrival_s))
        reference = None if self._truth is None else self._truth.reference_s
        replay = Replay(
            target,
            self.rows,
            slo_scale=self._wanted.slo_scale,
            reference_s=reference,
            on_progress=on_progress,
        )
        return replay, stack

    def _summary(self, facts: RunFacts) -> Summary:
        identity = RunIdentity(
            policy=self._wanted.policy,
            profile="none" if self._profile is None else self._profile.name,
            models=tuple(dict.fromkeys(str(row.model) for row in self.rows)),
            workload=self._wanted.label,
            gpus=self.settings.devices,
            seed=self._wanted.seed,
            slo_scale=self._wanted.slo_scale,
            rate_scale=self._wanted.rate_scale,
            noise=0.0,
            stragglers=0.0,
            failures=(),
            dispatcher=None,
            switches=_switches(self.settings, self._wanted),
            versions=versions(),
        )
        return msgspec.structs.replace(self._builder.summary(identity, facts), simulated=False)


def _switches(settings: Settings, wanted: _Wish) -> dict[str, SwitchValue]:
    return changes(live_knobs(settings.step_batch)) if wanted.policy == "trident" else {}


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
