"""What happens to devices and requests, told as events: by a simulation or by a live engine.

A `Witness` of an executor (`engine.executors.watching`). Times are the clock's seconds since
`begin`; nothing is told before. An output of a live request is a request of its own here: the
second of `r` is `r/1`, and both share the encode as a batch does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from engine.types import (
    Assignment,
    DeviceId,
    DeviceInfo,
    GenerationRequest,
    Placement,
    RequestId,
    StageKey,
    StageKind,
    StageTask,
    TaskId,
)
from schedulers.sim.events import (
    ArriveEvent,
    ClusterDevice,
    ClusterEvent,
    DegradeEvent,
    DeviceLostEvent,
    DeviceReadyEvent,
    EvictEvent,
    FinishEvent,
    LoadEvent,
    PlaceEvent,
    RejectEvent,
    ResidentStage,
    RunEvent,
    RunOutcome,
    SimEvent,
    SwitchEvent,
)
from schedulers.sim.reasons import Reasons

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.ports import Clock
    from engine.residency import DeviceMemory
    from engine.types import ClusterView, DispatchPlan

_DIGITS = 9  # of event times: nanoseconds


class Chronicle:
    """Tells one history, once it has begun.

    Args:
        weights: bytes of each stage's weights.
        reserve_bytes: of each device, what weights and activations may not take.

    Attributes:
        resizing: tasks that were asked to move to another team rather than to pause.
    """

    def __init__(
        self,
        clock: Clock,
        weights: Mapping[StageKey, int],
        on_event: Callable[[SimEvent], None],
        *,
        reserve_bytes: int = 0,
    ) -> None:
        """Be silent until something begins it."""
        self._clock, self._weights, self._tell = clock, weights, on_event
        self._reserve_bytes = reserve_bytes
        self._origin_s: float | None = None
        self._known: set[DeviceId] = set()
        self._alive: set[DeviceId] = set()
        self._lost_s: dict[DeviceId, float] = {}
        self._free_s: dict[DeviceId, float] = {}  # when each device's last run ended
        self._life = 1
        self._placement: Placement | None = None
        self._reasons = Reasons(self.served)
        self.resizing: set[TaskId] = set()

    @property
    def origin_s(self) -> float | None:
        """When times begin to count, on the clock; None before."""
        return self._origin_s

    @property
    def has_begun(self) -> bool:
        """Whether events are told."""
        return self._origin_s is not None

    def begin(self, memories: Iterable[DeviceMemory] = ()) -> None:
        """Say what the cluster holds now; times count from here."""
        self._origin_s = self._clock.now()
        devices = tuple(
            ClusterDevice(
                id=m.info.id,
                node=m.info.node,
                memory_bytes=m.capacity_bytes,
                stages=tuple(
                    ResidentStage(stage.model, stage.kind, size)
                    for stage, size in sorted(m.weights.items())
                ),
            )
            for m in memories
        )
        self._known = {device.id for device in devices}
        self._alive = set(self._known)
        self._tell(ClusterEvent(devices))
        if self._placement is not None:
            self.placed(self._placement, is_switch=False)

    def device_ready(self, info: DeviceInfo) -> None:
        """Tell of a device that came up, empty: again, or for the first time."""
        if not self.has_begun:
            return
        joins = info.id not in self._known
        self._known.add(info.id)
        self._alive.add(info.id)
        room = info.memory_bytes - self._reserve_bytes
        self._tell(
            DeviceReadyEvent(
                self._now(),
                info.id,
                node=info.node if joins else "",
                memory_bytes=room if joins else 0,
            )
        )

    def device_lost(self, device: DeviceId) -> None:
        """Tell of a device that went with all it held; silent if it never was there."""
        if self.has_begun and device in self._alive:
            self._alive.discard(device)
            self._lost_s[device] = self._now()
            self._tell(DeviceLostEvent(self._lost_s[device], device))

    def ended(self) -> None:
        """Tell that all devices went, because the engine was closed; another may follow."""
        for device in sorted(self._alive):
            self.device_lost(device)
        self._life += 1

    def placed(self, placement: Placement, *, is_switch: bool) -> None:
        """Tell of a placement that was adopted: in place of another one, or as the first."""
        self._placement = placement
        if not self.has_begun:
            return
        stages = {
            device: tuple(str(stage) for stage in sorted(wanted))
            for device, wanted in sorted(placement.stages.items())
        }
        kind = SwitchEvent if is_switch else PlaceEvent
        self._tell(kind(self._now(), placement.version, stages, placement.why))

    def decided(self, plan: DispatchPlan, view: ClusterView) -> None:
        """Tell why stages are launched, stopped or wait."""
        self.resizing.update(resize.task for resize in plan.resizes)
        if self.has_begun:
            for event in self._reasons.of(plan, view, self._now()):
                self._tell(event)

    def arrived(
        self, request: GenerationRequest, *, encoded: bool = False, resumed: bool = False
    ) -> None:
        """Tell of a request, which may have waited elsewhere since it came.

        `encoded` says that its embeddings are kept, so that no encode will run; `resumed`, that
        another engine has done a part of it.
        """
        if not self.has_begun:
            return
        at_s = max(0.0, self._since(request.arrival_s))
        for name in self._outputs(request):
            self._tell(
                ArriveEvent(
                    t=at_s,
                    request=name,
                    model=request.model,
                    height=request.shape.height_px,
                    width=request.shape.width_px,
                    frames=request.shape.frames,
                    steps=request.steps,
                    deadline=self._since(request.deadline_s),
                    tenant=request.tenant,
                    priority=request.priority,
                    encoded=encoded,
                    resumed=resumed,
                )
            )
            self._degraded(name, request, at_s)

    def _degraded(self, name: RequestId, request: GenerationRequest, at_s: float) -> None:
        if (how := request.degraded) is not None:
            self._tell(
                DegradeEvent(
                    t=at_s,
                    request=name,
                    wished=how.wished_steps,
                    least=how.least_steps,
                    steps=how.used_steps,
                    late_s=how.late_s,
                )
            )

    def finished(self, request: GenerationRequest) -> None:
        """Tell that all outputs of a request are there."""
        on_time = self._clock.now() <= request.deadline_s
        self._end(request, lambda name: FinishEvent(self._now(), name, on_time))

    def rejected(self, request: GenerationRequest, reason: str) -> None:
        """Tell that a request ended without outputs."""
        self._end(request, lambda name: RejectEvent(self._now(), name, reason))

    def _end(
        self, request: GenerationRequest, event: Callable[[RequestId], FinishEvent | RejectEvent]
    ) -> None:
        self._reasons.forget(request.id)
        if self.has_begun:
            for name in self._outputs(request):
                self._tell(event(name))

    def ran(
        self, launch: Assignment, started_s: float, steps: tuple[int, int], outcome: str
    ) -> None:
        """Tell of a launch that ended now, unless a device was lost before it could begin there."""
        ended = RunOutcome(outcome)
        if ended is RunOutcome.PAUSED and launch.task.id in self.resizing:
            ended = RunOutcome.RESIZED
        self.resizing.discard(launch.task.id)
        if not self.has_begun:
            return
        # A launch may be sent while the one before still runs; devices take them in order.
        before = (self._free_s.get(device, 0.0) for device in launch.team)
        start = max(self._since(started_s), *before)
        losses = [self._lost_s.get(device, -1.0) for device in launch.team]
        if any(self._lost_s.get(d, -1.0) <= start for d in launch.team if d not in self._alive):
            return
        end = max(start, min([self._now(), *(loss for loss in losses if loss >= start)]))
        self._free_s.update(dict.fromkeys(launch.team, end))
        self._tell(
            RunEvent(
                start=start,
                end=end,
                requests=tuple(name for task in launch.tasks for name in self.served(task)),
                stage=launch.task.stage.kind,
                devices=launch.team,
                degree=launch.degree,
                step_from=steps[0],
                step_to=steps[1],
                activation_bytes=launch.activation_bytes,
                outcome=ended,
                purpose=launch.task.purpose,
            )
        )

    def loaded(self, device: DeviceId, stage: StageKey, started_s: float) -> None:
        """Tell of weights that arrived now."""
        if self.has_begun:
            self._tell(
                LoadEvent(
                    start=max(0.0, self._since(started_s)),
                    end=self._now(),
                    device=device,
                    model=stage.model,
                    stage=stage.kind,
                    bytes=self._weights[stage],
                )
            )

    def evicted(self, device: DeviceId, stage: StageKey) -> None:
        """Tell of weights that were dropped now."""
        if self.has_begun:
            self._tell(
                EvictEvent(
                    start=self._now(),
                    end=self._now(),
                    device=device,
                    model=stage.model,
                    stage=stage.kind,
                    bytes=self._weights[stage],
                )
            )

    def served(self, task: StageTask) -> tuple[RequestId, ...]:
        """Return how events call the outputs that a task is for."""
        names = self._outputs(task.request)
        return names if task.stage.kind is StageKind.ENCODE else (names[task.image_index],)

    def _outputs(self, request: GenerationRequest) -> tuple[RequestId, ...]:
        """Return a name for each output; an engine that was replaced does not repeat any."""
        base = request.id if self._life == 1 else f"{request.id}~{self._life}"
        return tuple(RequestId(f"{base}/{i}" if i else base) for i in range(request.n))

    def _now(self) -> float:
        return self._since(self._clock.now())

    def _since(self, at_s: float) -> float:
        assert self._origin_s is not None  # asked only once it has begun
        return round(at_s - self._origin_s, _DIGITS)
