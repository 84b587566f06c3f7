"""A quick profile of the models that are served, where the operator has given none.

When the engine is ready and nobody has asked for anything for a second, each model's default size
runs twice with a few steps, at the degrees and the batch that may be used; the second time counts.
A request that comes meanwhile ends a warm-up at its next step, and it is tried again later. What was
measured is kept in the data folder for the next start, as long as machine, versions, devices and the
model are the same. At most `WITHIN_S` seconds per start are spent on it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import structlog

from engine import GenerationRequest, RequestId, SystemClock
from engine.types import Assignment, StageKind
from gateway.circumstances import fingerprints, machine, versions
from gateway.executions import a_wish
from gateway.warming import TENANT, WarmingDispatcher
from schedulers.errors import ProfileError
from schedulers.profile import Profile, load_profile
from schedulers.profiles.build import render
from schedulers.profiles.measured import Figure, LoadFigure, NodeFigure, build_profile
from schedulers.profiles.schema import Measurement
from schedulers.sim.events import LoadEvent, SimEvent

if TYPE_CHECKING:
    from engine import ModelId, PipelineSpec
    from engine.messages import StageReport
    from engine.ports import Dispatcher
    from gateway.embedded import EmbeddedEngine
    from gateway.settings import Settings
    from schedulers.cost import CostModel

WITHIN_S: Final = 5.0
_QUIET_S: Final = 1.0
_STEPS: Final = 3
_LONGEST_S: Final = 20.0  # expected of a point: longer ones would keep the first request waiting
_PATIENCE_S: Final = 120.0
_NO_HURRY_S: Final = 3600.0
_log = structlog.get_logger(__name__)


class Point(NamedTuple):
    """What one warm-up measures."""

    spec: PipelineSpec
    degree: int
    batch: int


class WarmUp:
    """What is known of the served models from earlier starts, and what is still to measure."""

    def __init__(self, settings: Settings, specs: Sequence[PipelineSpec], reserve: int) -> None:
        """Read what an earlier start has left; what is not of these circumstances does not count."""
        self._settings, self._specs, self._reserve_bytes = settings, specs, reserve
        self._devices = max(1, settings.devices)  # of this machine: none, if others lend theirs
        self._place = settings.data_dir / "warm-up.json"
        self._prints = fingerprints(specs)
        self.known = self._read()
        self._point: Point | None = None
        self._figures: list[Figure] = []
        self._load_s: dict[tuple[ModelId, StageKind], float] = {}
        self._running: asyncio.Task[None] | None = None
        self._mine: set[RequestId] = set()
        self._asked_s = 0.0
        self._serving = 0

    def _read(self) -> Profile | None:
        try:
            profile = load_profile(str(self._place))
        except ProfileError:
            return None
        if profile.measurement is None or not self._is_ours(profile.measurement, profile):
            return None
        models = {
            name: model
            for name, model in profile.models.items()
            if model.fingerprint == self._prints.get(name)
        }
        return msgspec.structs.replace(profile, models=models) if models else None

    def _is_ours(self, before: Measurement, profile: Profile) -> bool:
        now = self._measurement()
        same = (before.machine, before.versions, before.threads, profile.node.gpus)
        return same == (now.machine, now.versions, now.threads, self._devices)

    def _measurement(self) -> Measurement:
        share = max(1, (os.cpu_count() or 1) // self._devices)
        return Measurement(
            machine=machine(self._settings.device),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            repetitions=1,
            versions=versions(),
            threads=self._settings.threads_per_device or share,
            load_average=os.getloadavg()[0],
        )

    def around(self, dispatcher: Dispatcher, cost: CostModel) -> Dispatcher:
        """Return a dispatcher that launches warm-ups as they should be, and all else as before."""
        return WarmingDispatcher(dispatcher, cost, self)

    @property
    def point(self) -> Point | None:
        """What is measured now."""
        return self._point

    def note_load(self, event: SimEvent) -> None:
        """Keep how long a stage's weights took; of several devices the least."""
        if isinstance(event, LoadEvent):
            key, took_s = (event.model, event.stage), event.end - event.start
            self._load_s[key] = min(took_s, self._load_s.get(key, took_s))

    def owns(self, request: GenerationRequest) -> bool:
        """Whether a request is a warm-up."""
        return request.id in self._mine

    def arrived(self) -> None:
        """Make way for a request of somebody else."""
        self._serving += 1
        if self._running is not None:
            self._running.cancel()

    def left(self) -> None:
        """Note that a request has ended."""
        self._serving -= 1
        self._asked_s = time.monotonic()

    async def run(self, engine: EmbeddedEngine, cost: CostModel) -> None:
        """Measure what is not known, keep it, and let `cost` begin from it."""
        spent_s = 0.0
        while engine.readiness():  # noqa: ASYNC110 - nobody waits for it
            await asyncio.sleep(_QUIET_S)
        self._asked_s = time.monotonic()
        for point in self._points(cost):
            while spent_s < WITHIN_S:
                await self._until_quiet(engine)
                began = time.monotonic()
                done = await self._measure(engine, point)
                spent_s += time.monotonic() - began
                if done:
                    break
        if (profile := self._profile(engine)) is not None:
            cost.begin_from(profile)
            self._keep(profile)
            _log.info("warmed_up", models=sorted(profile.models), took_s=round(spent_s, 1))

    def _points(self, cost: CostModel) -> Iterator[Point]:
        """Yield what is to measure, small models first; not what is expected to take long."""
        settings = self._settings
        known = {} if self.known is None else self.known.models
        most = min(self._devices, settings.warm_up_degree)
        for spec in sorted(self._specs, key=lambda spec: (spec.default_shape.pixels, spec.id)):
            expected_s = 2 * _STEPS * cost.step_s(spec.id, spec.default_shape, 1)
            if spec.id not in known and expected_s <= _LONGEST_S:
                for batch in sorted({1, settings.step_batch}):
                    yield Point(spec, 1, batch)
                for degree in (k for k in spec.degrees if 1 < k <= most):
                    yield Point(spec, degree, 1)

    async def _until_quiet(self, engine: EmbeddedEngine) -> None:
        while self._serving or engine.readiness() or time.monotonic() < self._asked_s + _QUIET_S:  # noqa: ASYNC110 - nobody waits for it
            await asyncio.sleep(_QUIET_S)

    async def _measure(self, engine: EmbeddedEngine, point: Point) -> bool:
        """Run a point twice; False if a request came between."""
        before = len(self._figures)
        for _ in range(2):
            del self._figures[before:]
            wishes = [self._wish(point, number) for number in range(point.batch)]
            self._mine = {wish.id for wish in wishes}
            self._point, self._running = point, asyncio.create_task(_all(engine, wishes))
            try:
                await asyncio.wait([self._running], timeout=_PATIENCE_S)
            finally:
                running, self._running, self._point = self._running, None, None
                stalled = not running.done() and running.cancel()
            if stalled or running.cancelled() or running.exception() is not None:
                del self._figures[before:]
                return stalled or not running.cancelled()  # what cannot be had is not tried again
        return True

    def _wish(self, point: Point, number: int) -> GenerationRequest:
        steps = min(_STEPS, point.spec.default_steps)
        wish = a_wish(point.spec, point.spec.default_shape, steps)
        name, now_s = f"{time.time_ns()}-{number}", SystemClock().now()
        return msgspec.structs.replace(
            wish,
            id=RequestId(f"warm-up-{name}"),
            prompt=f"{wish.prompt} {name}",  # or its embeddings would be known the second time
            tenant=TENANT,
            arrival_s=now_s,
            deadline_s=now_s + _NO_HURRY_S,
        )

    def note(self, launch: Assignment, report: StageReport) -> None:
        """Keep what a warm-up's launch took."""
        task, diffuses = launch.task, report.kind is StageKind.DIFFUSE
        if self._point is None or report.task != task.id:
            return
        if self._point.degree > 1 == launch.degree:
            return  # known from degree 1
        self._figures.append(
            Figure(
                model=task.stage.model,
                stage=report.kind,
                shape=task.request.shape,
                degree=launch.degree,
                batch=len(launch.tasks),
                run_s=(report.run_s / (task.request.steps if diffuses else 1),),
                arrival_s=(report.receive_s,),
                send_s=(report.send_s,),
                output_bytes=0 if report.output is None else report.output.size_bytes,
                peak_bytes=report.peak_memory_bytes,
                exact_peak=report.peak_memory_bytes > 0,
            )
        )

    def _profile(self, engine: EmbeddedEngine) -> Profile | None:
        """Return what is known now, earlier starts included; None if this one found nothing."""
        measured = [spec for spec in self._specs if self._is_complete(spec)]
        if not measured:
            return None
        loads = [
            LoadFigure(model=spec.id, stage=kind, file_s=took_s, host_s=(took_s,))
            for spec in measured
            for kind in StageKind
            for took_s in [self._load_s[spec.id, kind]]
        ]
        node = NodeFigure(memory_bytes=engine.least_memory_bytes, change_s=(), slowdown=())
        made = build_profile(
            [*self._figures, *loads, node],
            measured,
            device=self._settings.device,
            devices=self._devices,
            reserve_bytes=self._reserve_bytes,
            fingerprints=self._prints,
            measurement=self._measurement(),
        )
        before = {} if self.known is None else self.known.models
        return msgspec.structs.replace(
            made,
            name="warm-up",
            description="One execution of each stage at each model's default size, at a start.",
            models={**before, **made.models},
        )

    def _is_complete(self, spec: PipelineSpec) -> bool:
        found = {f.stage for f in self._figures if f.model == spec.id and f.degree == f.batch == 1}
        return found == set(StageKind) and all((spec.id, k) in self._load_s for k in StageKind)

    def _keep(self, profile: Profile) -> None:
        """Write the profile in one go: another process of this folder may read it."""
        written = self._place.with_name(f"{self._place.name}.{os.getpid()}")
        try:
            written.write_text(render(profile), encoding="utf-8")
            written.replace(self._place)
        except OSError as error:
            _log.warning("warm_up_not_kept", place=str(self._place), reason=error.strerror)


async def _all(engine: EmbeddedEngine, wishes: Sequence[GenerationRequest]) -> None:
    """Run wishes together; raises `EngineError` if one fails."""
    async with asyncio.TaskGroup() as group:
        for wish in wishes:
            group.create_task(_one(engine, wish))


async def _one(engine: EmbeddedEngine, wish: GenerationRequest) -> None:
    await engine.generate(wish)
