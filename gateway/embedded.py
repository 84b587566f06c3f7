"""The engine that runs in this process: an `EngineClient` around a core that can be replaced.

Its stages run in worker processes of their own. Everything that happens is told to the console, and
to an event file if the operator wants one.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec
import structlog
from opentelemetry.metrics import CallbackOptions, Observation

from engine import ALONE, Along, RequestId, SystemClock
from engine.executors.local import node_of
from gateway.console import EngineState, state_of
from gateway.explaining import explain
from gateway.measured import EngineGauges
from gateway.runner import Engine, Workbench, build_engine, open_models, open_profile, reserve_bytes
from gateway.warm_up import WarmUp
from observability import semconv
from schedulers.cost import CostModel
from schedulers.planner.knobs import PlannerKnobs
from schedulers.sim.chronicle import Chronicle
from schedulers.sim.events import EventFile, FinishEvent, RejectEvent, SimEvent

if TYPE_CHECKING:
    from engine import GenerationRequest, GenerationResult, ModelId, PipelineSpec
    from engine.journal import Journal
    from engine.ports import Executor
    from engine.types import StageTask
    from gateway.engine_client import EngineClient
    from gateway.jobs.record import StageDecision
    from gateway.runner import Telemetry
    from gateway.settings import Settings
    from schedulers.sim.config import RunFacts

_REVIVAL_PAUSE_S: Final = 10.0
_log = structlog.get_logger(__name__)


class EmbeddedEngine:
    """An `EngineClient` in this process; its core is made when it starts, on the running loop.

    Args:
        on_event: told of everything that happens, besides the settings' event file.
        planner: knobs of the planner; by default the window between two switches is the setting's.
        waits: events begin with `begin_history`, not with the engine's start.
        around: see `Workbench`.
    """

    def __init__(
        self,
        settings: Settings,
        telemetry: Telemetry,
        on_event: Callable[[SimEvent], None] | None = None,
        planner: PlannerKnobs | None = None,
        *,
        waits: bool = False,
        around: Callable[[Executor], Executor] = lambda executor: executor,
    ) -> None:
        """Read the model folders and the profile; nothing runs yet."""
        self._settings = settings
        specs = open_models(settings.models, device=settings.device)
        profile, warm_up = open_profile(settings, specs), None
        if profile is None and settings.warm_up_degree:
            warm_up = WarmUp(settings, specs, reserve_bytes(settings.device))
            profile = warm_up.known
        clock = SystemClock()
        self._events = None if settings.events_file is None else EventFile(settings.events_file)
        weights = {spec.stage(k): size for spec in specs for k, size in spec.weight_bytes.items()}
        self._chronicle = Chronicle(
            clock,
            weights,
            _told(
                self._events,
                telemetry.feed.note,
                *([] if on_event is None else [on_event]),
                *([] if warm_up is None else [warm_up.note_load]),
            ),
            reserve_bytes=reserve_bytes(settings.device),
        )
        telemetry.feed.follow(self._state)
        self._bench = Workbench(
            specs=specs,
            cost=CostModel(specs, profile),
            profile=profile,
            telemetry=telemetry,
            clock=clock,
            planner=planner or PlannerKnobs(cooldown_s=settings.planner_window_s),
            chronicle=self._chronicle,
            gauges=EngineGauges(telemetry.meters.meter, telemetry.monitor),
            warm_up=warm_up,
            around=around,
        )
        self._warming: asyncio.Task[None] | None = None
        self._engine: Engine | None = None
        telemetry.meters.meter.create_observable_counter(
            semconv.METRIC_EMBEDDINGS,
            [self._count_embeddings],
            description="Requests by whether their prompt's embeddings were kept",
        )
        self._started_s, self._waits = 0.0, waits

    @property
    def specs(self) -> Mapping[ModelId, PipelineSpec]:
        """Models by the name that clients use."""
        return {spec.id: spec for spec in self._bench.specs}

    @property
    def devices(self) -> int:
        """Devices of this engine that are known, whether their workers are up or not."""
        if self._engine is None:
            return self._settings.devices
        return len(self._engine.core.cluster.configured)

    def latency_s(self, request: GenerationRequest) -> float:
        """Return what the cost model expects on idle devices, by what it has learnt so far."""
        return self._bench.cost.latency_s(request)

    def work_s(self, request: GenerationRequest) -> float:
        """Return the device-seconds that the cost model expects."""
        return self._bench.cost.work_s(request)

    def knows(self, request: GenerationRequest) -> bool:
        """Return whether the cost model has a profile, or has seen this model at this size."""
        return self._bench.cost.knows(request)

    def learnt(self) -> bytes:
        """Return what the cost model has learnt, as `RemoteEngines` reads it."""
        return msgspec.json.encode(self._bench.cost.learnt())

    async def start(self) -> None:
        """Start the worker processes."""
        self._started_s = time.monotonic()
        if not (self._waits or self._chronicle.has_begun):
            self._chronicle.begin()
        self._engine = build_engine(self._settings, self._bench)
        await self._engine.core.start()
        if (warm_up := self._bench.warm_up) is not None and self._warming is None:
            self._warming = asyncio.create_task(warm_up.run(self, self._bench.cost))
            self._warming.add_done_callback(_notice_end)

    @property
    def least_memory_bytes(self) -> int:
        """What the smallest live device may hold."""
        memories = self._started().core.cluster.memories.values()
        return min(memory.info.memory_bytes for memory in memories)

    @property
    def is_up(self) -> bool:
        """Whether some worker lives, whatever it holds."""
        return self._engine is not None and bool(self._engine.core.cluster.memories)

    def begin_history(self) -> None:
        """Let events begin with what the devices hold now."""
        self._chronicle.begin(self._started().core.cluster.memories.values())

    def facts(self, wall_s: float) -> RunFacts:
        """Return what the policies did in the `wall_s` seconds of a history."""
        engine = self._started()
        return engine.dispatcher.facts(engine.planner, wall_s, wall_s)

    async def revive(self) -> bool:
        """Replace a core that stopped on an internal error, with a pause between two deaths."""
        core = self._started().core
        if not core.is_closed:
            return True
        if time.monotonic() < self._started_s + _REVIVAL_PAUSE_S:
            return False
        _log.critical("engine_revived", reasons=core.readiness())
        await self._stop()
        await self.start()
        return True

    async def generate(
        self, request: GenerationRequest, journal: Journal | None = None, along: Along = ALONE
    ) -> GenerationResult:
        """Run a request; see `EngineCore.generate`."""
        warm_up = self._bench.warm_up
        if warm_up is None or warm_up.owns(request):
            return await self._generate(request, journal, along)
        warm_up.arrived()
        try:
            return await self._generate(request, journal, along)
        finally:
            warm_up.left()

    async def _generate(
        self, request: GenerationRequest, journal: Journal | None, along: Along
    ) -> GenerationResult:
        core = self._started().core
        self._chronicle.arrived(
            request,
            encoded=core.embeddings.holds(request),
            resumed=journal is not None and bool(journal.finished),
        )
        try:
            result = await core.generate(request, journal, along)
        except (Exception, asyncio.CancelledError) as error:
            self._chronicle.rejected(request, str(error) or "cancelled")
            raise
        self._chronicle.finished(request)
        return result

    def explain(self, request: RequestId) -> tuple[StageDecision, ...]:
        """Return the core's last words with what the cost model says of the alternatives."""
        if self._engine is None:
            return ()
        now_s = self._bench.clock.now()
        nodes = Counter(map(node_of, self._engine.core.cluster.configured))
        devices = max(nodes.values(), default=1)  # no team is wider
        return tuple(
            explain(decision, self._bench.cost, now_s=now_s, devices=devices)
            for decision in self._engine.core.decisions(request)
        )

    def progress(self, request: RequestId) -> float:
        """Return the core's count; nothing is done before there is a core."""
        return 0.0 if self._engine is None else self._engine.core.progress(request)

    def readiness(self) -> tuple[str, ...]:
        """Return the core's reasons, or that there is no core yet."""
        if self._engine is None:
            return ("The engine is not started.",)
        return self._engine.core.readiness()

    def notices(self) -> tuple[str, ...]:
        """Return the core's notices."""
        return () if self._engine is None else self._engine.core.notices()

    def _state(self) -> EngineState | None:
        """Return how the core stands, for the console."""
        if self._engine is None or self._chronicle.origin_s is None:
            return None
        core = self._engine.core
        view, tasks = core.view(), core.ready_tasks()
        return state_of(
            view,
            self._expected(tasks, view.now_s),
            core.readiness(),
            origin_s=self._chronicle.origin_s,
            names=self._chronicle.served,
        )

    def _expected(
        self, tasks: Sequence[StageTask], now_s: float
    ) -> Iterator[tuple[StageTask, float]]:
        """Yield waiting stages with when their requests should finish: after those before them."""
        ahead_s, counted = 0.0, set[RequestId]()
        for task in tasks:
            waits_s = ahead_s / max(1, self.devices)
            yield task, now_s + waits_s + self.latency_s(task.request)
            if task.request.id not in counted:
                counted.add(task.request.id)
                ahead_s += self.work_s(task.request)

    async def suspend(self, timeout_s: float) -> None:
        """Save what runs; see `EngineCore.suspend`."""
        if self._engine is not None:
            await self._engine.core.suspend(timeout_s)

    async def close(self) -> None:
        """Stop the workers; does nothing if they never started."""
        if self._warming is not None:
            self._warming.cancel()
        await self._stop()
        if self._events is not None:
            self._events.close()

    def _count_embeddings(self, _options: CallbackOptions) -> tuple[Observation, ...]:
        """Return the counts of the core that runs now."""
        if self._engine is None:
            return ()
        kept = self._engine.core.embeddings
        return (
            Observation(kept.hits, {semconv.LABEL_OUTCOME: semconv.OUTCOME_HIT}),
            Observation(kept.misses, {semconv.LABEL_OUTCOME: semconv.OUTCOME_MISS}),
        )

    async def _stop(self) -> None:
        if self._engine is not None:
            await self._engine.core.close()
            self._chronicle.ended()

    def _started(self) -> Engine:
        if self._engine is None:
            message = "EmbeddedEngine.generate was called before start."
            raise RuntimeError(message)
        return self._engine


def _told(
    file: EventFile | None,
    *listeners: Callable[[SimEvent], None],
) -> Callable[[SimEvent], None]:
    """Return what tells all; an event that ends a request is on disk at once."""

    def tell(event: SimEvent) -> None:
        if file is not None:
            file.write(event)
            if isinstance(event, FinishEvent | RejectEvent):
                file.flush()
        for listener in listeners:
            listener(event)

    return tell


def _notice_end(warming: asyncio.Task[None]) -> None:
    """Say that a warm-up failed: the engine serves all the same, by guess and by what it learns."""
    if not warming.cancelled() and (error := warming.exception()) is not None:
        _log.error("warm_up_failed", exc_info=error)


def embedded_engine(settings: Settings, telemetry: Telemetry) -> EngineClient:
    """Return the engine that a single-process server uses."""
    return EmbeddedEngine(settings, telemetry)
