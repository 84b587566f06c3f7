"""One bench: what is replayed, against which server or engine, and the summary of it.

It knows neither the command line's options nor where figures are written.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx
import msgspec

from engine import ModelId, Shape, SystemClock
from gateway.bench import (
    EngineTarget,
    Replay,
    ServerTarget,
    ToldTarget,
    steady_rows,
    until_ready,
)
from gateway.comparing import changes
from gateway.embedded import EmbeddedEngine
from gateway.machine import need_gpus
from gateway.refusal import RefusalError
from gateway.runner import Telemetry, live_knobs
from gateway.settings import Settings
from observability.meters import Meters
from observability.monitor import StageMonitor
from observability.tracing import build_provider
from schedulers.cost import CostModel
from schedulers.policies import TUNABLE, SwitchValue
from schedulers.profile import Profile
from schedulers.sim.chronicle import Chronicle
from schedulers.sim.config import RunFacts
from schedulers.sim.demand import TraceDemand
from schedulers.sim.events import SimEvent
from schedulers.sim.experiment import versions
from schedulers.sim.summary import RunIdentity, Summary, SummaryBuilder
from schedulers.sim.traces import TraceRow

if TYPE_CHECKING:
    from engine import PipelineSpec

_KEY_VARIABLE: Final = "TRIDENT_API_KEY"
Progress = Callable[[float], AbstractContextManager[Callable[[float], None]]]
"""Shows how far a replay of so many seconds has come."""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
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


class Bench:
    """One replay.

    Attributes:
        rows: what was replayed; known once it runs.
    """

    def __init__(
        self,
        settings: Settings,
        specs: tuple[PipelineSpec, ...],
        profile: Profile | None,
        wanted: Wish,
        progress: Progress,
    ) -> None:
        """Prepare; nothing is started or sent."""
        self._progress = progress
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
        on_progress = stack.enter_context(self._progress(self.rows[-1].arrival_s))
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
            dispatcher=self.settings.solver,
            switches=switched(self.settings),
            versions=versions(),
        )
        return msgspec.structs.replace(self._builder.summary(identity, facts), simulated=False)


def switched(settings: Settings) -> dict[str, SwitchValue]:
    """Return what a server's policy does otherwise than one that is simulated."""
    if settings.policy not in TUNABLE:
        return {}
    return {**changes(live_knobs(settings.step_batch)), **settings.switches}
