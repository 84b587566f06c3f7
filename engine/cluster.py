"""The live devices: their memory ledgers, the teams that work on them, the desired placement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.residency import DeviceMemory
from engine.teams import Teams
from engine.types import (
    ClusterView,
    DeviceId,
    DeviceInfo,
    DeviceView,
    Placement,
    RunningView,
    StageKey,
)


class Cluster:
    """What is where, and who works on what.

    Args:
        configured: ids of all devices of the deployment.
        weight_bytes: what each stage's weights take on a device.
        reserve_bytes: memory of each device that is never promised.
    """

    def __init__(
        self,
        configured: Sequence[DeviceId],
        weight_bytes: Mapping[StageKey, int],
        reserve_bytes: int = 0,
    ) -> None:
        """Begin with no live device and an empty placement."""
        self.configured = tuple(configured)
        self.weight_bytes = dict(weight_bytes)
        self.memories: dict[DeviceId, DeviceMemory] = {}
        self.teams = Teams()
        self.placement = Placement(0, {})
        self._reserve_bytes = reserve_bytes
        self._views: dict[DeviceId, tuple[tuple[int, float | None, Placement], DeviceView]] = {}

    def add(self, info: DeviceInfo) -> None:
        """Open an empty ledger for a device that came up."""
        self.memories[info.id] = DeviceMemory(info, self._reserve_bytes)
        self._views.pop(info.id, None)

    def remove(self, device: DeviceId) -> None:
        """Forget a device that died, with everything it held."""
        self.memories.pop(device, None)
        self._views.pop(device, None)

    def desired(self, device: DeviceId) -> frozenset[StageKey]:
        """Return the stages that placement wants on a device."""
        return self.placement.stages.get(device, frozenset())

    def view(self, now_s: float, running: tuple[RunningView, ...] = ()) -> ClusterView:
        """Return the cluster as policies may see it now."""
        return ClusterView(
            configured=self.configured,
            devices=tuple(self._view_of(memory) for memory in self.memories.values()),
            weight_bytes=self.weight_bytes,
            now_s=now_s,
            running=running,
            placement_version=self.placement.version,
        )

    def _view_of(self, memory: DeviceMemory) -> DeviceView:
        """Return a device's view; most devices did not change since the last decision."""
        device = memory.info.id
        busy_until_s = self.teams.busy_until_s(device)
        kept, view = self._views.get(device, (None, None))
        if kept is not None and view is not None and self._is_fresh(kept, memory, busy_until_s):
            return view
        view = DeviceView(
            info=memory.info,
            capacity_bytes=memory.capacity_bytes,
            free_bytes=memory.free_bytes,
            resident=frozenset(memory.weights),
            desired=self.desired(device),
            busy_until_s=busy_until_s,
        )
        self._views[device] = ((memory.revision, busy_until_s, self.placement), view)
        return view

    def _is_fresh(
        self,
        kept: tuple[int, float | None, Placement],
        memory: DeviceMemory,
        busy_until_s: float | None,
    ) -> bool:
        revision, until_s, placement = kept
        return (
            revision == memory.revision and until_s == busy_until_s and placement is self.placement
        )

    def check_integrity(self) -> None:
        """Check the teams and every ledger."""
        self.teams.check_integrity()
        for memory in self.memories.values():
            memory.check_integrity()
