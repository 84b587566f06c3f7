"""The board: a working copy of the cluster on which one decision is tried out.

Knows which devices are idle, by node, and what each may run; taking a team removes it here only.
What depends on the placement alone (`Layout`) is kept from one decision to the next.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from engine.types import ClusterView, DeviceId, DeviceView, RunningView, StageKey, StageKind

Node = str


class Layout:
    """What a placement allows: for each stage, the devices that may run it, by node.

    Attributes:
        nodes: all nodes with a live device, in order.
        homes: per stage, the devices that placement wants it on.
        pools: per stage, those of them that diffuse nothing: the auxiliaries of the paper.
    """

    def __init__(self, view: ClusterView) -> None:
        """Read the placement out of a view."""
        self.node_of: dict[DeviceId, Node] = {d.info.id: d.info.node for d in view.devices}
        self.nodes = tuple(sorted(set(self.node_of.values())))
        self.least_capacity_bytes = min((d.capacity_bytes for d in view.devices), default=0)
        self.homes: dict[StageKey, frozenset[DeviceId]] = {}
        self.pools: dict[StageKey, frozenset[DeviceId]] = {}
        homes, pools = defaultdict(set), defaultdict(set)
        for device in view.devices:
            diffuses = any(stage.kind is StageKind.DIFFUSE for stage in device.desired)
            for stage in device.desired:
                homes[stage].add(device.info.id)
                if not diffuses:
                    pools[stage].add(device.info.id)
        self.homes = {stage: frozenset(ids) for stage, ids in homes.items()}
        self.pools = {stage: frozenset(ids) for stage, ids in pools.items()}

    def widest(self, stage: StageKey, needed_bytes: int, view: ClusterView) -> int:
        """Return how many devices of one node could hold `needed_bytes` for a stage."""
        count: dict[Node, int] = defaultdict(int)
        for device in view.devices:
            if stage in device.desired and needed_bytes <= device.capacity_bytes:
                count[device.info.node] += 1
        return max(count.values(), default=0)


class Board:
    """Idle devices by node, and the launches in the air, while a decision is made."""

    def __init__(self, view: ClusterView, layout: Layout) -> None:
        """Begin with what the view says is idle."""
        self.view, self.layout, self.now_s = view, layout, view.now_s
        self.devices: dict[DeviceId, DeviceView] = {d.info.id: d for d in view.devices}
        self.idle: dict[DeviceId, DeviceView] = {
            d.info.id: d for d in view.devices if d.busy_until_s is None
        }
        self._rooms: dict[StageKey, dict[Node, list[DeviceId]]] = {}
        self.diffusing: tuple[RunningView, ...] = tuple(
            r
            for r in view.running
            if r.assignment.task.stage.kind is StageKind.DIFFUSE
            and all(device in self.devices for device in r.assignment.team)  # else it is failing
        )

    def rooms(self, stage: StageKey) -> dict[Node, list[DeviceId]]:
        """Return the idle devices that may run a stage, by node; nodes without one are absent."""
        rooms = self._rooms.get(stage)
        if rooms is None:
            homes = self.layout.homes.get(stage, frozenset())
            rooms = {}
            for device, seen in self.idle.items():
                if device in homes:
                    rooms.setdefault(seen.info.node, []).append(device)
            self._rooms[stage] = rooms
        return rooms

    def idle_in_pool(self, stage: StageKey) -> list[DeviceId]:
        """Return the idle auxiliaries of a stage."""
        return [d for d in self.layout.pools.get(stage, ()) if d in self.idle]

    def take(self, team: Iterable[DeviceId]) -> None:
        """Remove a team from the idle devices."""
        for device in team:
            node = self.idle.pop(device).info.node
            for rooms in self._rooms.values():
                if device in rooms.get(node, ()):
                    rooms[node].remove(device)
                    if not rooms[node]:
                        del rooms[node]

    def choose(
        self, stage: StageKey, node: Node, degree: int, near: Sequence[DeviceId] = ()
    ) -> tuple[DeviceId, ...]:
        """Return `degree` idle devices of a node that may run a stage."""
        return self.pick(stage, self.rooms(stage)[node], degree, near)

    def pick(
        self,
        stage: StageKey,
        room: Sequence[DeviceId],
        degree: int,
        near: Sequence[DeviceId] = (),
        avoid: Sequence[DeviceId] = (),
    ) -> tuple[DeviceId, ...]:
        """Return `degree` of some idle devices: those with the stage resident, then near ones.

        Those to `avoid`, where the task has failed, come last.
        """
        if len(room) > degree:
            idle = self.idle
            room = sorted(
                room,
                key=lambda d: (d in avoid, stage not in idle[d].resident, d not in near, d),
            )
        return tuple(sorted(room[:degree]))

    def lacks(self, stage: StageKey, team: Iterable[DeviceId]) -> bool:
        """Whether some device of a team must load the stage first."""
        return any(stage not in self.devices[device].resident for device in team)

    def has_peer(self, stage: StageKey, team: Sequence[DeviceId]) -> bool:
        """Whether another device of the team's node holds the stage."""
        node = self.layout.node_of[team[0]]
        return any(
            stage in seen.resident
            for device, seen in self.devices.items()
            if seen.info.node == node and device not in team
        )
