"""The live devices: their memory ledgers, the teams that work on them, the desired placement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import structlog

from engine.quarantine import Quarantine
from engine.residency import DeviceMemory
from engine.teams import Teams
from engine.types import (
    ClusterView,
    DeviceId,
    DeviceInfo,
    DeviceView,
    Placement,
    RequestId,
    RunningView,
    StageKey,
)

BARE_S = 30.0  # without a device in service; then one in quarantine is better than none
log = structlog.get_logger(__name__)


class Fleet(Protocol):
    """What an executor says of its devices."""

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        """See `Executor.devices`."""
        ...

    @property
    def is_whole(self) -> bool:
        """See `Executor.is_whole`."""
        ...


class Cluster:
    """What is where, and who works on what.

    Args:
        fleet: knows the devices of the deployment; more may become known.
        weight_bytes: what each stage's weights take on a device.
        reserve_bytes: memory of each device that is never promised.
    """

    def __init__(
        self,
        fleet: Fleet,
        weight_bytes: Mapping[StageKey, int],
        reserve_bytes: int = 0,
    ) -> None:
        """Begin with no live device and an empty placement."""
        self._fleet = fleet
        self.weight_bytes = dict(weight_bytes)
        self.memories: dict[DeviceId, DeviceMemory] = {}
        self._changed: set[DeviceId] = set()
        self.teams = Teams(self._changed)
        self.quarantine = Quarantine()
        self._placement = Placement(0, {})
        self._reserve_bytes = reserve_bytes
        self._views: dict[DeviceId, DeviceView] = {}
        self._bare_since_s: float | None = None

    @property
    def configured(self) -> tuple[DeviceId, ...]:
        """Ids of all devices that are known, whether they live now or not."""
        return self._fleet.devices

    @property
    def placement(self) -> Placement:
        """The placement that devices are to follow."""
        return self._placement

    def adopt(self, placement: Placement) -> None:
        """Take a new placement: metadata only."""
        self._placement = placement
        self._changed.update(self.memories)

    def add(self, info: DeviceInfo) -> None:
        """Open an empty ledger for a device that came up."""
        memory = DeviceMemory(info, self._reserve_bytes, self._changed)
        self.memories[info.id] = memory
        self._views[info.id] = self._view_of(memory)

    def remove(self, device: DeviceId) -> None:
        """Forget a device that died, with everything it held."""
        self.memories.pop(device, None)
        self._views.pop(device, None)

    def desired(self, device: DeviceId) -> frozenset[StageKey]:
        """Return the stages that placement wants on a device."""
        return self.placement.stages.get(device, frozenset())

    def mark(self, device: DeviceId, request: RequestId, now_s: float) -> None:
        """Hold a failed launch against a device, which may put it into quarantine."""
        out = self.quarantine.devices(now_s)
        others = [d for d in self.memories if d != device and d not in out]
        if self.quarantine.mark(device, request, now_s, spare=not others):
            log.error(
                "device_quarantined", device=device, until_s=self.quarantine.devices(now_s)[device]
            )

    def _out_of_service(self, now_s: float) -> dict[DeviceId, float]:
        """Return the devices in quarantine; while no other lives, live ones serve after a while.

        Others may be back in moments, and what a bad device fails has one attempt less.
        """
        out = self.quarantine.devices(now_s)
        if not self.memories or self.memories.keys() - out.keys():
            self._bare_since_s = None
        elif self._bare_since_s is None:
            self._bare_since_s = now_s
        elif now_s >= self._bare_since_s + BARE_S:
            return {d: until_s for d, until_s in out.items() if d not in self.memories}
        return out

    def sooner(self, at_s: float | None, now_s: float) -> float | None:
        """Return `at_s`, or the moment before it at which a device comes into service."""
        at_s = self.quarantine.sooner(at_s, now_s)
        if self._bare_since_s is None or now_s >= self._bare_since_s + BARE_S:
            return at_s
        until_s = self._bare_since_s + BARE_S
        return until_s if at_s is None else min(until_s, at_s)

    def view(self, now_s: float, running: tuple[RunningView, ...] = ()) -> ClusterView:
        """Return the cluster as policies may see it now; only what changed is looked at anew."""
        for device in self._changed:
            if device in self.memories:
                self._views[device] = self._view_of(self.memories[device])
        self._changed.clear()
        out = self._out_of_service(now_s)
        return ClusterView(
            configured=self.configured,
            is_whole=self._fleet.is_whole,
            devices=tuple(view for device, view in self._views.items() if device not in out),
            weight_bytes=self.weight_bytes,
            now_s=now_s,
            running=running,
            placement_version=self.placement.version,
            quarantined=frozenset(out),
        )

    def _view_of(self, memory: DeviceMemory) -> DeviceView:
        return DeviceView(
            info=memory.info,
            capacity_bytes=memory.capacity_bytes,
            free_bytes=memory.free_bytes,
            resident=frozenset(memory.weights),
            desired=self.desired(memory.info.id),
            busy_until_s=self.teams.busy_until_s(memory.info.id),
        )

    def check_integrity(self) -> None:
        """Check the teams and every ledger."""
        self.teams.check_integrity()
        self.quarantine.check_integrity()
        for memory in self.memories.values():
            memory.check_integrity()
