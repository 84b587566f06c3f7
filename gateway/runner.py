"""Composition root of the engine: the only place where policies, executor and core meet.

An embedded engine runs in the API's process; its stages run in worker processes of their own, so
torch is never imported here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import structlog
from opentelemetry.metrics import CallbackOptions, Observation

from engine import EngineCore, EngineError, PipelineError, SystemClock, open_pipeline
from engine.executors.local import NODE, LocalExecutor
from engine.executors.watching import WatchedExecutor
from engine.fingerprint import fingerprint
from engine.ports import Clock, Dispatcher, Executor, Planner
from gateway.explaining import explain
from observability import semconv
from observability.tracing import StageSpans
from schedulers.cost import CostModel
from schedulers.dispatch.knobs import WORKERS
from schedulers.planner.demand import uniform
from schedulers.planner.knobs import PlannerKnobs
from schedulers.policies import Policy, Setup, build_policy
from schedulers.profile import Profile, load_profile, usable
from schedulers.sim.chronicle import Chronicle
from schedulers.sim.config import RunFacts
from schedulers.sim.events import EventFile, FinishEvent, RejectEvent, SimEvent
from schedulers.sim.watching import TimedDispatcher, WatchedPlanner

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from engine import GenerationRequest, GenerationResult, ModelId, PipelineSpec, RequestId
    from engine.journal import Journal
    from engine.types import DeviceId
    from gateway.engine_client import EngineClient
    from gateway.jobs.record import StageDecision
    from gateway.settings import Settings
    from observability.meters import Meters
    from observability.monitor import StageMonitor

_REVIVAL_PAUSE_S: Final = 10.0
_CUDA_RESERVE_BYTES: Final = 1 << 30  # context, cuDNN and fragmentation, which no profile sees
_DTYPE_BYTES: Final = {"cpu": 4, "cuda": 2}  # float32 and bfloat16, as workers load weights

# Nobody waits for ever, however urgent the others are.
LIVE_KNOBS: Final = msgspec.structs.replace(WORKERS, elders_per_16_nodes=1)

_log = structlog.get_logger(__name__)


class Telemetry(msgspec.Struct, frozen=True):
    """What watches the server; `monitor` is one of `provider`'s span processors."""

    provider: TracerProvider
    monitor: StageMonitor
    meters: Meters


def open_models(folders: Sequence[Path], *, device: str) -> tuple[PipelineSpec, ...]:
    """Read all model folders; no weights are loaded.

    Raises:
        PipelineError: a folder cannot be served, or two of them have the same name.
    """
    specs = tuple(open_pipeline(folder, dtype_bytes=_DTYPE_BYTES[device]) for folder in folders)
    if not specs:
        message = "No model to serve. Name a model folder with --model PATH or TRIDENT_MODEL."
        raise PipelineError(message)
    by_name: dict[ModelId, PipelineSpec] = {}
    for spec in specs:
        if spec.id in by_name:
            message = (
                f"Models {by_name[spec.id].folder} and {spec.folder} would both be called "
                f"{spec.id!r}; rename one of the folders."
            )
            raise PipelineError(message)
        by_name[spec.id] = spec
    return specs


def open_profile(settings: Settings, specs: Sequence[PipelineSpec]) -> Profile | None:
    """Read the profile that the operator names, as far as it speaks of these models.

    Raises:
        ProfileError: it is malformed, or was measured on another version of a model.
    """
    if settings.profile is None:
        return None
    profile = load_profile(str(settings.profile))
    return usable(profile, {spec.id: fingerprint(Path(spec.folder)) for spec in specs})


class Workbench(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is made of, and what watches it; `chronicle` tells the event file."""

    specs: Sequence[PipelineSpec]
    cost: CostModel
    profile: Profile | None
    telemetry: Telemetry
    clock: Clock
    planner: PlannerKnobs
    chronicle: Chronicle | None = None


class Engine(msgspec.Struct, frozen=True):
    """A core with its policies, which are watched if there is a chronicle."""

    core: EngineCore
    dispatcher: Dispatcher
    planner: Planner


def build_engine(settings: Settings, bench: Workbench) -> Engine:
    """Wire an engine; must be called on the event loop that will run it."""
    executor: Executor = LocalExecutor(
        bench.specs,
        devices=settings.devices,
        device_kind=settings.device,
        memory_bytes=settings.device_memory_bytes,
        host_bytes=settings.host_memory_bytes,
        handoff_bytes=settings.handoff_memory_bytes,
        threads=settings.threads_per_device,
    )
    policy = _policy(settings, bench, executor.devices)
    dispatcher, planner = policy.dispatcher, policy.planner
    if bench.chronicle is not None:
        executor = WatchedExecutor(executor, bench.clock, bench.chronicle)
        dispatcher = TimedDispatcher(dispatcher, bench.chronicle)
        planner = WatchedPlanner(planner, bench.chronicle)
    core = EngineCore(
        bench.specs,
        executor=executor,
        dispatcher=dispatcher,
        planner=planner,
        clock=bench.clock,
        spans=StageSpans(bench.telemetry.provider),
        monitor=bench.telemetry.monitor if policy.needs_monitor else None,
        max_requests=settings.max_concurrent,
        reserve_bytes=reserve_bytes(settings.device),
        embedding_bytes=settings.embedding_cache_bytes,
    )
    return Engine(core, dispatcher, planner)


def _policy(settings: Settings, bench: Workbench, devices: Sequence[DeviceId]) -> Policy:
    profiled = {} if bench.profile is None else bench.profile.models
    shapes = {
        spec.id: profiled[spec.id].shapes if spec.id in profiled else (spec.default_shape,)
        for spec in bench.specs
    }
    setup = Setup(
        specs=bench.specs,
        cost=bench.cost,
        nodes=dict.fromkeys(devices, NODE),
        prior=uniform(shapes, {spec.id: spec.default_steps for spec in bench.specs}),
        base=LIVE_KNOBS,
        planner=bench.planner,
    )
    return build_policy(settings.policy, setup)


def reserve_bytes(device: str) -> int:
    """Return what of a device's memory is never promised to stages."""
    return _CUDA_RESERVE_BYTES if device == "cuda" else 0


class EmbeddedEngine:
    """An `EngineClient` in this process; its core is made when it starts, on the running loop.

    Args:
        on_event: told of everything that happens, besides the settings' event file.
        planner: knobs of the planner; by default the window between two switches is the setting's.
        waits: events begin with `begin_history`, not with the engine's start.
    """

    def __init__(
        self,
        settings: Settings,
        telemetry: Telemetry,
        on_event: Callable[[SimEvent], None] | None = None,
        planner: PlannerKnobs | None = None,
        *,
        waits: bool = False,
    ) -> None:
        """Read the model folders and the profile; nothing runs yet."""
        self._settings = settings
        specs = open_models(settings.models, device=settings.device)
        profile = open_profile(settings, specs)
        clock = SystemClock()
        self._events = None if settings.events_file is None else EventFile(settings.events_file)
        self._chronicle = None
        if self._events is not None or on_event is not None:
            weights = {
                spec.stage(k): size for spec in specs for k, size in spec.weight_bytes.items()
            }
            self._chronicle = Chronicle(
                clock,
                weights,
                _told(self._events, on_event),
                reserve_bytes=reserve_bytes(settings.device),
            )
        self._bench = Workbench(
            specs=specs,
            cost=CostModel(specs, profile),
            profile=profile,
            telemetry=telemetry,
            clock=clock,
            planner=planner or PlannerKnobs(cooldown_s=settings.planner_window_s),
            chronicle=self._chronicle,
        )
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
        """Devices of this engine, whether their workers are up or not."""
        return self._settings.devices

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
        if self._chronicle is not None and not (self._waits or self._chronicle.has_begun):
            self._chronicle.begin()
        self._engine = build_engine(self._settings, self._bench)
        await self._engine.core.start()

    @property
    def is_up(self) -> bool:
        """Whether some worker lives, whatever it holds."""
        return self._engine is not None and bool(self._engine.core.cluster.memories)

    def begin_history(self) -> None:
        """Let events begin with what the devices hold now."""
        if self._chronicle is not None:
            self._chronicle.begin(self._started().core.cluster.memories.values())

    def facts(self, wall_s: float) -> RunFacts:
        """Return what the policies did in the `wall_s` seconds of a history."""
        engine = self._started()
        assert isinstance(engine.dispatcher, TimedDispatcher)  # there are events
        assert isinstance(engine.planner, WatchedPlanner)
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
        self, request: GenerationRequest, journal: Journal | None = None
    ) -> GenerationResult:
        """Run a request; see `EngineCore.generate`."""
        core = self._started().core
        if self._chronicle is None:
            return await core.generate(request, journal)
        self._chronicle.arrived(
            request,
            encoded=core.embeddings.holds(request),
            resumed=journal is not None and bool(journal.finished),
        )
        try:
            result = await core.generate(request, journal)
        except (EngineError, asyncio.CancelledError) as error:
            self._chronicle.rejected(request, str(error) or "cancelled")
            raise
        self._chronicle.finished(request)
        return result

    def explain(self, request: RequestId) -> tuple[StageDecision, ...]:
        """Return the core's last words with what the cost model says of the alternatives."""
        if self._engine is None:
            return ()
        now_s, devices = self._bench.clock.now(), self._settings.devices
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

    async def close(self) -> None:
        """Stop the workers; does nothing if they never started."""
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
            if self._chronicle is not None:
                self._chronicle.ended()

    def _started(self) -> Engine:
        if self._engine is None:
            message = "EmbeddedEngine.generate was called before start."
            raise RuntimeError(message)
        return self._engine


def _told(
    file: EventFile | None, on_event: Callable[[SimEvent], None] | None
) -> Callable[[SimEvent], None]:
    """Return what tells both; an event that ends a request is on disk at once."""

    def tell(event: SimEvent) -> None:
        if file is not None:
            file.write(event)
            if isinstance(event, FinishEvent | RejectEvent):
                file.flush()
        if on_event is not None:
            on_event(event)

    return tell


def embedded_engine(settings: Settings, telemetry: Telemetry) -> EngineClient:
    """Return the engine that a single-process server uses."""
    return EmbeddedEngine(settings, telemetry)
