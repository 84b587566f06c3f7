"""Composition root of the engine: the only place where policies, executor and core meet.

An embedded engine runs in the API's process; its stages run in worker processes of their own, so
torch is never imported here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import structlog
from opentelemetry.metrics import CallbackOptions, Observation

from engine import EngineCore, PipelineError, SystemClock, open_pipeline
from engine.executors.local import LocalExecutor
from gateway.explaining import explain
from observability import semconv
from observability.tracing import StageSpans
from schedulers.cost import CostModel
from schedulers.dispatch.knobs import WORKERS
from schedulers.dispatch.trident import TridentDispatcher
from schedulers.static import StaticPlanner

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from engine import GenerationRequest, GenerationResult, ModelId, PipelineSpec, RequestId
    from engine.journal import Journal
    from gateway.engine_client import EngineClient
    from gateway.jobs.record import StageDecision
    from gateway.settings import Settings
    from observability.meters import Meters
    from observability.monitor import StageMonitor

_REVIVAL_PAUSE_S: Final = 10.0
_CUDA_RESERVE_BYTES: Final = 1 << 30  # context, cuDNN and fragmentation, which no profile sees
_DTYPE_BYTES: Final = {"cpu": 4, "cuda": 2}  # float32 and bfloat16, as workers load weights

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


def build_engine(
    settings: Settings,
    specs: Sequence[PipelineSpec],
    cost: CostModel,
    telemetry: Telemetry,
) -> EngineCore:
    """Wire the engine; must be called on the event loop that will run it."""
    executor = LocalExecutor(
        specs,
        devices=settings.devices,
        device_kind=settings.device,
        memory_bytes=settings.device_memory_bytes,
        host_bytes=settings.host_memory_bytes,
        handoff_bytes=settings.handoff_memory_bytes,
        threads=settings.threads_per_device,
    )
    return EngineCore(
        specs,
        executor=executor,
        dispatcher=TridentDispatcher(cost, WORKERS),
        planner=StaticPlanner(specs),
        clock=SystemClock(),
        spans=StageSpans(telemetry.provider),
        monitor=telemetry.monitor,
        max_requests=settings.max_concurrent,
        reserve_bytes=_CUDA_RESERVE_BYTES if settings.device == "cuda" else 0,
        embedding_bytes=settings.embedding_cache_bytes,
    )


class EmbeddedEngine:
    """An `EngineClient` in this process; its core is made when it starts, on the running loop."""

    def __init__(self, settings: Settings, telemetry: Telemetry) -> None:
        """Read the model folders; nothing runs yet."""
        self._settings = settings
        self._telemetry = telemetry
        self._models = open_models(settings.models, device=settings.device)
        self._cost = CostModel(self._models)
        self._clock = SystemClock()
        self._core: EngineCore | None = None
        telemetry.meters.meter.create_observable_counter(
            semconv.METRIC_EMBEDDINGS,
            [self._count_embeddings],
            description="Requests by whether their prompt's embeddings were kept",
        )
        self._started_s = 0.0

    @property
    def specs(self) -> Mapping[ModelId, PipelineSpec]:
        """Models by the name that clients use."""
        return {spec.id: spec for spec in self._models}

    @property
    def devices(self) -> int:
        """Devices of this engine, whether their workers are up or not."""
        return self._settings.devices

    def latency_s(self, request: GenerationRequest) -> float:
        """Return what the cost model expects on idle devices, by what it has learnt so far."""
        return self._cost.latency_s(request)

    def work_s(self, request: GenerationRequest) -> float:
        """Return the device-seconds that the cost model expects."""
        return self._cost.work_s(request)

    def knows(self, request: GenerationRequest) -> bool:
        """Return whether the cost model has a profile, or has seen this model at this size."""
        return self._cost.knows(request)

    def learnt(self) -> bytes:
        """Return what the cost model has learnt, as `RemoteEngines` reads it."""
        return msgspec.json.encode(self._cost.learnt())

    async def start(self) -> None:
        """Start the worker processes."""
        self._started_s = time.monotonic()
        self._core = build_engine(self._settings, self._models, self._cost, self._telemetry)
        await self._core.start()

    async def revive(self) -> bool:
        """Replace a core that stopped on an internal error, with a pause between two deaths."""
        core = self._started()
        if not core.is_closed:
            return True
        if time.monotonic() < self._started_s + _REVIVAL_PAUSE_S:
            return False
        _log.critical("engine_revived", reasons=core.readiness())
        await core.close()
        await self.start()
        return True

    async def generate(self, request: GenerationRequest, journal: Journal) -> GenerationResult:
        """Run a request; see `EngineCore.generate`."""
        return await self._started().generate(request, journal)

    def explain(self, request: RequestId) -> tuple[StageDecision, ...]:
        """Return the core's last words with what the cost model says of the alternatives."""
        if self._core is None:
            return ()
        now_s, devices = self._clock.now(), self._settings.devices
        return tuple(
            explain(decision, self._cost, now_s=now_s, devices=devices)
            for decision in self._core.decisions(request)
        )

    def progress(self, request: RequestId) -> float:
        """Return the core's count; nothing is done before there is a core."""
        return 0.0 if self._core is None else self._core.progress(request)

    def readiness(self) -> tuple[str, ...]:
        """Return the core's reasons, or that there is no core yet."""
        return ("The engine is not started.",) if self._core is None else self._core.readiness()

    def notices(self) -> tuple[str, ...]:
        """Return the core's notices."""
        return () if self._core is None else self._core.notices()

    async def close(self) -> None:
        """Stop the workers; does nothing if they never started."""
        if self._core is not None:
            await self._core.close()

    def _count_embeddings(self, _options: CallbackOptions) -> tuple[Observation, ...]:
        """Return the counts of the core that runs now."""
        if self._core is None:
            return ()
        kept = self._core.embeddings
        return (
            Observation(kept.hits, {semconv.LABEL_OUTCOME: semconv.OUTCOME_HIT}),
            Observation(kept.misses, {semconv.LABEL_OUTCOME: semconv.OUTCOME_MISS}),
        )

    def _started(self) -> EngineCore:
        if self._core is None:
            message = "EmbeddedEngine.generate was called before start."
            raise RuntimeError(message)
        return self._core


def embedded_engine(settings: Settings, telemetry: Telemetry) -> EngineClient:
    """Return the engine that a single-process server uses."""
    return EmbeddedEngine(settings, telemetry)
