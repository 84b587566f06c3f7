"""A static placement: made from the number of devices, changed only by quarantine.

One device holds everything (the paper's EDC). Two split into encode + decode and diffuse. From
three on, one encodes, one decodes and all others diffuse, since diffuse dominates the time.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.pipelines import PipelineSpec
from engine.types import ClusterView, DeviceId, Placement, StageKey, StageKind
from observability.snapshot import MonitorSnapshot

_ALL = (StageKind.ENCODE, StageKind.DIFFUSE, StageKind.DECODE)


class StaticPlanner:
    """A `Planner` that places all models alike and then keeps still."""

    def __init__(self, specs: Sequence[PipelineSpec]) -> None:
        """Place the stages of `specs`."""
        self._specs = tuple(specs)
        self._version = 0
        self._placed_on: tuple[DeviceId, ...] = ()

    def place(self, view: ClusterView, snapshot: MonitorSnapshot | None) -> Placement | None:
        """Return the placement the first time and when quarantine changes, else None."""
        del snapshot
        trusted = tuple(d for d in view.configured if d not in view.quarantined)
        if trusted == self._placed_on:
            return None
        self._version, self._placed_on = self._version + 1, trusted
        return Placement(
            version=self._version,
            stages={
                device: frozenset(self._stages(kinds)) for device, kinds in split(trusted).items()
            },
        )

    def _stages(self, kinds: Sequence[StageKind]) -> list[StageKey]:
        return [spec.stage(kind) for spec in self._specs for kind in kinds]


def split(devices: Sequence[DeviceId]) -> dict[DeviceId, tuple[StageKind, ...]]:
    """Return the stage kinds of each device, as the module's docstring tells."""
    if len(devices) == 1:
        return {devices[0]: _ALL}
    if len(devices) == 2:  # noqa: PLR2004 - the three cases are the rule itself
        return {
            devices[0]: (StageKind.ENCODE, StageKind.DECODE),
            devices[1]: (StageKind.DIFFUSE,),
        }
    roles: dict[DeviceId, tuple[StageKind, ...]] = dict.fromkeys(devices, (StageKind.DIFFUSE,))
    roles[devices[0]] = (StageKind.ENCODE,)
    roles[devices[-1]] = (StageKind.DECODE,)
    return roles


class EverywherePlanner:
    """A `Planner` that wants every stage on every device: pipeline-level placement.

    What does not fit together is swapped in on demand by the engine, at the cost of its loads.
    """

    def __init__(self, specs: Sequence[PipelineSpec]) -> None:
        """Place the stages of `specs`."""
        self._stages = frozenset(stage for spec in specs for stage in spec.stages)
        self._version = 0
        self._placed_on: tuple[DeviceId, ...] = ()

    def place(self, view: ClusterView, snapshot: MonitorSnapshot | None) -> Placement | None:
        """Return the placement the first time and when there are more devices, else None."""
        del snapshot
        if self._version and view.configured == self._placed_on:
            return None
        self._version, self._placed_on = self._version + 1, view.configured
        stages = dict.fromkeys(view.configured, self._stages)
        return Placement(version=self._version, stages=stages)
