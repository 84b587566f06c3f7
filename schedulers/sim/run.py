"""One simulation: the real core loop, a virtual clock, the fake executor, and a trace.

Everything that decides is the code that the server runs; only time and devices are simulated.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from engine.core import EngineCore
from engine.errors import EngineClosedError, EngineError
from engine.executors.fake import FakeExecutor
from engine.types import (
    GenerationRequest,
    MediaFormat,
    Modality,
    ModelId,
    RequestId,
    Shape,
)
from observability.monitor import StageMonitor
from observability.tracing import StageSpans, build_provider
from schedulers.cost import CostModel
from schedulers.planner.demand import Demand, uniform
from schedulers.policies import Policy, Setup, build_policy
from schedulers.profile import load_profile, specs_of
from schedulers.sim.admission import Admission
from schedulers.sim.chronicle import Chronicle
from schedulers.sim.clock import VirtualClock, run_virtual
from schedulers.sim.config import RunFacts, SimConfig
from schedulers.sim.events import SimEvent
from schedulers.sim.watching import TimedDispatcher, WatchedPlanner
from schedulers.sim.world import World, cluster_of

if TYPE_CHECKING:
    from engine.pipelines import PipelineSpec
    from engine.types import DeviceId
    from schedulers.profile import Profile
    from schedulers.sim.config import NodeFailure
    from schedulers.sim.traces import TraceRow

UNBOUNDED = 1 << 40

OnEvent = Callable[[SimEvent], None]


def simulate(
    config: SimConfig,
    *,
    on_event: OnEvent,
    on_progress: Callable[[float], None] = lambda _now_s: None,
) -> RunFacts:
    """Run a simulation to the end of its last request.

    Args:
        config: what to simulate.
        on_event: told of everything that happens, in order of its end.
        on_progress: told the virtual seconds whenever a request arrives.

    Raises:
        ProfileError: the profile is malformed or lacks a model.
        TraceError: a row names a model that is not simulated.
    """
    return run_virtual(_Simulation(config, on_event, on_progress).run())


class _Simulation:
    """The wiring of one run."""

    def __init__(
        self, config: SimConfig, on_event: OnEvent, on_progress: Callable[[float], None]
    ) -> None:
        self._config, self._on_progress = config, on_progress
        profile = load_profile(config.profile)
        self._specs = specs_of(profile, config.models)
        self._infos = cluster_of(profile, config.gpus, config.nodes)
        self._clock, rng = VirtualClock(), random.Random(config.seed)  # noqa: S311 - no cryptography
        self._truth = CostModel(self._specs, profile, learn=False)
        self._world = World(
            self._truth,
            rng,
            noise=config.noise,
            stragglers=config.stragglers,
            slowdown=profile.node.slowdown,
            launch_s=profile.node.launch_s,
            busy=lambda: self._executor.busy,
        )
        weights = {
            spec.stage(k): size for spec in self._specs for k, size in spec.weight_bytes.items()
        }
        self._chronicle = Chronicle(self._clock, weights, on_event)
        cost = CostModel(self._specs, profile)
        policy = self._policy(cost, profile)
        self._dispatcher = TimedDispatcher(policy.dispatcher, self._chronicle)
        self._planner = WatchedPlanner(policy.planner, self._chronicle)
        self._executor = FakeExecutor(
            self._infos,
            clock=self._clock,
            duration_s=self._world.duration_s,
            lead_s=self._world.lead_s,
            load_s=self._world.load_s,
            witness=self._chronicle,
            keep_launches=False,
        )
        self._core = self._engine(policy, profile.node.reserve_bytes)
        self._dead: set[DeviceId] = set()
        self._admission = Admission(
            cost,
            progress=self._core.progress,
            devices=lambda: len(self._infos) - len(self._dead),
        )
        self._open: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self._bug: BaseException | None = None

    def _policy(self, cost: CostModel, profile: Profile) -> Policy:
        setup = Setup(
            specs=self._specs,
            cost=cost,
            nodes={info.id: info.node for info in self._infos},
            solver=self._config.dispatcher,
            switches=self._config.switches,
            sizes=self._config.sizes,
            planner=self._config.planner,
            prior=_even_mix(profile, self._specs),
            mix=self._config.mix,
        )
        return build_policy(self._config.policy, setup)

    def _engine(self, policy: Policy, reserve_bytes: int) -> EngineCore:
        monitor = StageMonitor(window_s=self._config.window_s) if policy.needs_monitor else None
        processors = [] if monitor is None else [monitor]
        return EngineCore(
            self._specs,
            executor=self._executor,
            dispatcher=self._dispatcher,
            planner=self._planner,
            clock=self._clock,
            spans=StageSpans(build_provider(processors=processors)),
            monitor=monitor,
            max_requests=UNBOUNDED,
            reserve_bytes=reserve_bytes,
        )

    async def run(self) -> RunFacts:
        started = time.perf_counter()
        await self._core.start()
        await self._settle()
        memories = self._core.cluster.memories.values()
        self._world.begin(memories)
        self._chronicle.begin(memories)
        failures = [asyncio.create_task(self._fail(f)) for f in self._config.failures]
        for row in self._config.rows:
            await asyncio.sleep(max(0.0, row.arrival_s - self._clock.now()))
            self._expect_sane()
            self._arrive(row)
            self._on_progress(self._clock.now())
        while self._open:
            self._ended.clear()
            await self._ended.wait()
            self._expect_sane()
        for failure in failures:
            failure.cancel()
        await asyncio.sleep(0)
        self._core.check_integrity()
        simulated_s = self._clock.now()
        await self._core.close()
        return self._dispatcher.facts(self._planner, time.perf_counter() - started, simulated_s)

    def _expect_sane(self) -> None:
        """Raise what ended a request that was neither its finish nor its refusal."""
        if self._bug is not None:
            raise self._bug

    async def _settle(self) -> None:
        """Let the first placement be loaded, device by device and stage by stage: in no time yet."""
        stages = sum(len(spec.stages) for spec in self._specs)
        for _round in range(8 * (len(self._infos) + stages)):
            await asyncio.sleep(0)

    def _arrive(self, row: TraceRow) -> None:
        request = self._request(row)
        if self._config.degrade:
            least = self._config.least_steps(row)
            request = self._admission.admit(request, least, self._clock.now())
        self._chronicle.arrived(request)
        work = asyncio.create_task(self._serve(request))
        self._open.add(work)
        work.add_done_callback(self._close)

    def _close(self, work: asyncio.Task[None]) -> None:
        self._open.discard(work)
        self._ended.set()
        if not work.cancelled() and (error := work.exception()) is not None:
            self._bug = error

    def _request(self, row: TraceRow) -> GenerationRequest:
        model = row.model or ModelId(self._config.models[0])
        spec = next(spec for spec in self._specs if spec.id == model)
        now_s = self._clock.now()
        wish = GenerationRequest(
            id=RequestId(uuid.uuid4().hex),
            model=model,
            prompt="",
            shape=Shape(row.width, row.height, row.frames),
            steps=row.steps,
            guidance_scale=1.0,
            seed=0,
            arrival_s=now_s,
            deadline_s=now_s,
            media=MediaFormat.PNG if spec.modality is Modality.IMAGE else MediaFormat.MP4,
            tenant=row.tenant,
            priority=row.priority,
        )
        scale = self._config.slo_scale if row.slo_scale is None else row.slo_scale
        return _due(wish, now_s + scale * self._truth.reference_s(wish))

    async def _serve(self, request: GenerationRequest) -> None:
        try:
            await self._core.generate(request)
        except EngineClosedError:
            raise  # a bug, not an outcome
        except EngineError as error:
            self._chronicle.rejected(request, str(error))
        else:
            self._chronicle.finished(request)
        finally:
            self._admission.ended(request.id)

    async def _fail(self, failure: NodeFailure) -> None:
        """Let devices die for good."""
        await asyncio.sleep(max(0.0, failure.at_s - self._clock.now()))
        for device in failure.doomed(self._infos):
            if device not in self._dead:  # its node may have died before
                self._dead.add(device)
                self._chronicle.device_lost(device)
                self._executor.kill(device, for_good=True)


def _even_mix(profile: Profile, specs: Sequence[PipelineSpec]) -> Demand:
    """Return what planners expect before anything was seen: every profiled size as often."""
    shapes = {spec.id: profile.models[spec.id].shapes for spec in specs}
    return uniform(shapes, {spec.id: spec.default_steps for spec in specs})


def _due(request: GenerationRequest, deadline_s: float) -> GenerationRequest:
    return msgspec.structs.replace(request, deadline_s=deadline_s)
