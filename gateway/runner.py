"""Composition root of the engine: the only place where policies, executor and core meet.

An embedded engine runs in the API's process; its stages run in worker processes of their own, so
torch is never imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from engine import EngineCore, PipelineError, open_pipeline
from engine.executors.local import NODE
from engine.executors.watching import WatchedExecutor
from engine.fingerprint import fingerprint
from engine.handoff import WINDOW_BYTES
from engine.messages import Saving
from engine.ports import Clock, Executor
from engine.types import DeviceId
from gateway.console import ConsoleFeed
from gateway.measured import EngineGauges, MeasuredDispatcher, MeasuredPlanner
from gateway.nodes import executor_of
from observability.tracing import StageSpans
from schedulers.cost import CostModel
from schedulers.dispatch.knobs import WORKERS, Knobs
from schedulers.planner.demand import uniform
from schedulers.planner.knobs import PlannerKnobs
from schedulers.policies import Setup, build_policy
from schedulers.profile import Profile, load_profile, usable
from schedulers.sim.chronicle import Chronicle
from schedulers.sim.watching import TimedDispatcher, WatchedPlanner

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from engine import ModelId, PipelineSpec
    from gateway.settings import Settings
    from gateway.warm_up import WarmUp
    from observability.meters import Meters
    from observability.monitor import StageMonitor

_REVIVAL_PAUSE_S: Final = 10.0
# Context, cuDNN and fragmentation, which no profile sees; and the window for hand-offs.
_CUDA_RESERVE_BYTES: Final = (1 << 30) + WINDOW_BYTES
_DTYPE_BYTES: Final = {"cpu": 4, "cuda": 2}  # float32 and bfloat16, as workers load weights

_log = structlog.get_logger(__name__)


class Telemetry(msgspec.Struct, frozen=True):
    """What watches the server; `monitor` is one of `provider`'s span processors."""

    provider: TracerProvider
    monitor: StageMonitor
    meters: Meters
    feed: ConsoleFeed = msgspec.field(default_factory=ConsoleFeed)


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
    """What an engine is made of, and what watches it; `chronicle` tells its history.

    `around` may put something between the core and its executor, to disturb or pace it.
    """

    specs: Sequence[PipelineSpec]
    cost: CostModel
    profile: Profile | None
    telemetry: Telemetry
    clock: Clock
    planner: PlannerKnobs
    chronicle: Chronicle
    gauges: EngineGauges
    warm_up: WarmUp | None = None
    around: Callable[[Executor], Executor] = lambda executor: executor


class Engine(msgspec.Struct, frozen=True):
    """A core with its policies, which are watched."""

    core: EngineCore
    dispatcher: TimedDispatcher
    planner: WatchedPlanner


def build_engine(settings: Settings, bench: Workbench) -> Engine:
    """Wire an engine; must be called on the event loop that will run it."""
    executor = executor_of(
        settings,
        bench.specs,
        saving=_saving(settings),
        widest_team=max(k for spec in bench.specs for k in bench.cost.degrees(spec.id)),
    )
    setup = setup_of(
        settings,
        bench.specs,
        bench.cost,
        bench.profile,
        devices=executor.devices,
        planner=bench.planner,
    )
    policy, telemetry = build_policy(settings.policy, setup), bench.telemetry
    meter = telemetry.meters.meter
    executor = WatchedExecutor(bench.around(executor), bench.clock, bench.chronicle)
    decides = policy.dispatcher
    if bench.warm_up is not None:
        decides = bench.warm_up.around(decides, bench.cost)
    dispatcher = TimedDispatcher(decides, bench.chronicle)
    planner = WatchedPlanner(policy.planner, bench.chronicle)
    core = EngineCore(
        bench.specs,
        executor=executor,
        dispatcher=MeasuredDispatcher(dispatcher, meter, [bench.gauges.decided]),
        planner=MeasuredPlanner(planner, meter),
        clock=bench.clock,
        spans=StageSpans(telemetry.provider),
        monitor=telemetry.monitor if policy.needs_monitor else None,
        max_requests=settings.max_concurrent,
        reserve_bytes=reserve_bytes(settings.device),
        embedding_bytes=settings.embedding_cache_bytes,
        kept=settings.data_dir / "paused",
    )
    return Engine(core, dispatcher, planner)


def _saving(settings: Settings) -> Saving | None:
    if settings.save_every_steps == 0:
        return None
    return Saving(settings.save_every_steps, settings.save_every_s)


def live_knobs(step_batch: int = 1) -> Knobs:
    """Return what the dispatcher may do live: nobody waits for ever, however urgent the others are."""
    return msgspec.structs.replace(WORKERS, elders_per_16_nodes=1, step_batch=step_batch)


def need_policy(settings: Settings, specs: Sequence[PipelineSpec], profile: Profile | None) -> None:
    """See that the policy can be built as it is wanted; an engine builds its own.

    Raises:
        SchedulerError: it has no such switch or solver, or a switch has a value of the wrong kind.
    """
    if specs:
        cost = CostModel(specs, profile)
        setup = setup_of(settings, specs, cost, profile, devices=(DeviceId("any"),))
        build_policy(settings.policy, setup)


def setup_of(
    settings: Settings,
    specs: Sequence[PipelineSpec],
    cost: CostModel,
    profile: Profile | None,
    *,
    devices: Sequence[DeviceId],
    planner: PlannerKnobs | None = None,
) -> Setup:
    """Return what the policy of a server is built for; switches go before what a server does by itself."""
    profiled = {} if profile is None else profile.models
    shapes = {
        spec.id: profiled[spec.id].shapes if spec.id in profiled else (spec.default_shape,)
        for spec in specs
    }
    return Setup(
        specs=specs,
        cost=cost,
        nodes=dict.fromkeys(devices, NODE),
        solver=settings.solver,
        switches=settings.switches,
        prior=uniform(shapes, {spec.id: spec.default_steps for spec in specs}),
        base=live_knobs(settings.step_batch),
        planner=planner,
    )


def capacity_bytes(settings: Settings) -> int | None:
    """Return what the operator lets stages take of a device; None: whatever it has."""
    if settings.device_memory_bytes is None:
        return None
    return max(0, settings.device_memory_bytes - reserve_bytes(settings.device))


def reserve_bytes(device: str) -> int:
    """Return what of a device's memory is never promised to stages."""
    return _CUDA_RESERVE_BYTES if device == "cuda" else 0
