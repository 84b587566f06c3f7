"""The simulated world: what really happens to devices, against what policies expect of it.

Durations come from the profile, with noise and stragglers that no policy is told of.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from engine.types import Assignment, DeviceId, DeviceInfo, StageKey

if TYPE_CHECKING:
    from engine.residency import DeviceMemory
    from schedulers.cost import CostModel
    from schedulers.profile import Profile

STRAGGLER_FACTOR = 3.0


class World:
    """How long things really take in one simulation."""

    def __init__(
        self,
        truth: CostModel,
        rng: random.Random,
        *,
        noise: float = 0.0,
        stragglers: float = 0.0,
        slowdown: Sequence[float] = (),
        launch_s: float = 0.0,
        busy: Callable[[], int] = lambda: 0,
    ) -> None:
        """Begin before time 0: until `begin`, loads take no time.

        `slowdown` and `launch_s` are the profile's, and `busy` tells how many devices work already when a launch
        begins: it takes as many times as long as that says, to its end.
        """
        self._slowdown, self._busy, self._launch_s = tuple(slowdown), busy, launch_s
        self._truth, self._rng = truth, rng
        self._noise, self._stragglers = noise, stragglers
        self._node_of: dict[DeviceId, str] = {}
        self._begun = False

    def begin(self, memories: Iterable[DeviceMemory]) -> None:
        """Let loads take their time from here on."""
        self._begun = True
        self._node_of = {memory.info.id: memory.info.node for memory in memories}

    def duration_s(self, launch: Assignment) -> float:
        """Return what a launch really takes for the steps it has left."""
        task = launch.task
        estimate = self._truth.estimate(
            task.stage, task.request, degree=launch.degree, batch=len(launch.tasks)
        )
        share = task.steps_left / task.request.steps if task.steps_left else 1.0
        return estimate.duration_s * share * self._fate() * self._crowding(launch.degree)

    def _crowding(self, degree: int) -> float:
        if not self._slowdown:
            return 1.0
        return self._slowdown[min(self._busy() + degree, len(self._slowdown)) - 1]

    def _fate(self) -> float:
        factor = 1.0
        if self._noise:
            factor += self._rng.uniform(-self._noise, self._noise)
        if self._stragglers and self._rng.random() < self._stragglers:
            factor *= STRAGGLER_FACTOR
        return factor

    def lead_s(self, launch: Assignment) -> float:
        """Return what passes before a launch's first step: order or hand-off, forming a new team."""
        task = launch.task
        source = task.came_from[0] if task.came_from else None
        lead_s = self._truth.handoff_s(
            task.stage,
            task.request,
            same_device=source in launch.team,
            same_node=self._node_of.get(source or DeviceId("")) == self._node_of[launch.team[0]],
        )
        if launch.follows is None:  # a hand-off was measured with the order in it
            lead_s = lead_s or self._launch_s
        return lead_s + (self._truth.change_s if task.saved is not None else 0.0)

    def load_s(self, stage: StageKey, from_peer: bool) -> float:  # noqa: FBT001 - the port's order
        """Return what a load takes; before the simulation begins, nothing."""
        return self._truth.load_s(stage, from_peer=from_peer) if self._begun else 0.0


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
