"""The simulated world: what really happens to devices, against what policies expect of it.

Durations come from the profile, with noise and stragglers that no policy is told of. Everything
that occupies a device becomes an event.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.types import Assignment, DeviceId, DeviceInfo, StageKey, TaskId
from schedulers.sim.events import (
    ClusterDevice,
    ClusterEvent,
    EvictEvent,
    LoadEvent,
    ResidentStage,
    RunEvent,
    RunOutcome,
    SimEvent,
)

if TYPE_CHECKING:
    from engine.core import EngineCore
    from engine.ports import Clock
    from schedulers.cost import CostModel
    from schedulers.profile import Profile

STRAGGLER_FACTOR = 3.0
_DIGITS = 9  # of event times: nanoseconds


class World:
    """Times and events of one simulation; a `Witness` of its executor.

    Attributes:
        resizing: tasks that were asked to move to another team rather than to pause.
    """

    def __init__(
        self,
        truth: CostModel,
        clock: Clock,
        rng: random.Random,
        *,
        noise: float = 0.0,
        stragglers: float = 0.0,
        on_event: Callable[[SimEvent], None],
    ) -> None:
        """Begin before time 0: until `begin`, loads take no time and nothing is an event."""
        self._truth, self._clock, self._rng = truth, clock, rng
        self._noise, self._stragglers, self._on_event = noise, stragglers, on_event
        self._weights: dict[StageKey, int] = {}
        self._node_of: dict[DeviceId, str] = {}
        self._begun = False
        self.resizing: set[TaskId] = set()

    def begin(self, core: EngineCore) -> None:
        """Say what the cluster holds now, and let loads take their time from here on."""
        self._begun = True
        self._weights = core.cluster.weight_bytes
        memories = core.cluster.memories.values()
        self._node_of = {m.info.id: m.info.node for m in memories}
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
        self._on_event(ClusterEvent(devices))

    def duration_s(self, launch: Assignment) -> float:
        """Return what a launch really takes for the steps it has left."""
        task = launch.task
        estimate = self._truth.estimate(
            task.stage, task.request, degree=launch.degree, batch=len(launch.tasks)
        )
        share = task.steps_left / task.request.steps if task.steps_left else 1.0
        return estimate.duration_s * share * self._fate()

    def _fate(self) -> float:
        factor = 1.0
        if self._noise:
            factor += self._rng.uniform(-self._noise, self._noise)
        if self._stragglers and self._rng.random() < self._stragglers:
            factor *= STRAGGLER_FACTOR
        return factor

    def lead_s(self, launch: Assignment) -> float:
        """Return what passes before a launch's first step: hand-off, and forming a new team."""
        task = launch.task
        source = task.came_from[0] if task.came_from else None
        lead_s = self._truth.handoff_s(
            task.stage,
            task.request,
            same_device=source in launch.team,
            same_node=self._node_of.get(source or DeviceId("")) == self._node_of[launch.team[0]],
        )
        return lead_s + (self._truth.change_s if task.saved is not None else 0.0)

    def load_s(self, stage: StageKey, from_peer: bool) -> float:  # noqa: FBT001 - the port's order
        """Return what a load takes; before the simulation begins, nothing."""
        return self._truth.load_s(stage, from_peer=from_peer) if self._begun else 0.0

    def ran(
        self, launch: Assignment, started_s: float, steps: tuple[int, int], outcome: str
    ) -> None:
        """Tell of a launch that ended now."""
        ended = RunOutcome(outcome)
        if ended is RunOutcome.PAUSED and launch.task.id in self.resizing:
            ended = RunOutcome.RESIZED
        self.resizing.discard(launch.task.id)
        self._on_event(
            RunEvent(
                start=round(started_s, _DIGITS),
                end=round(self._clock.now(), _DIGITS),
                requests=tuple(task.request.id for task in launch.tasks),
                stage=launch.task.stage.kind,
                devices=launch.team,
                degree=launch.degree,
                step_from=steps[0],
                step_to=steps[1],
                activation_bytes=launch.activation_bytes,
                outcome=ended,
            )
        )

    def loaded(self, device: DeviceId, stage: StageKey, started_s: float) -> None:
        """Tell of weights that arrived now."""
        if self._begun:
            self._on_event(
                LoadEvent(
                    start=round(started_s, _DIGITS),
                    end=round(self._clock.now(), _DIGITS),
                    device=device,
                    model=stage.model,
                    stage=stage.kind,
                    bytes=self._weights[stage],
                )
            )

    def evicted(self, device: DeviceId, stage: StageKey) -> None:
        """Tell of weights that were dropped now."""
        if self._begun:
            now_s = round(self._clock.now(), _DIGITS)
            self._on_event(
                EvictEvent(
                    start=now_s,
                    end=now_s,
                    device=device,
                    model=stage.model,
                    stage=stage.kind,
                    bytes=self._weights[stage],
                )
            )


def cluster_of(profile: Profile, gpus: int, nodes: int | None) -> list[DeviceInfo]:
    """Return the devices of a simulated cluster, numbered by node and place.

    The last node is smaller if the GPUs do not divide.
    """
    per_node = -(-gpus // nodes) if nodes else profile.node.gpus
    width = len(str((gpus - 1) // per_node))
    return [
        DeviceInfo(
            DeviceId(f"n{i // per_node:0{width}d}g{i % per_node}"),
            f"n{i // per_node:0{width}d}",
            profile.node.memory_bytes,
        )
        for i in range(gpus)
    ]
