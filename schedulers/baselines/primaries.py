"""Primary types: the idle devices that diffuse, by what else they hold and by node.

The paper's dispatcher chooses a type and a degree; which node is no part of its program.
"""

from __future__ import annotations

from collections.abc import Collection

from engine.types import DeviceId, StageKey, StageKind
from schedulers.baselines.allotment import Team
from schedulers.dispatch.board import Node
from schedulers.dispatch.round import Round

Role = frozenset[StageKey]


class Primary:
    """One type: devices whose placement is the same.

    Attributes:
        role: the stages that they should hold.
        rooms: its idle devices by node.
        capacity_bytes: of the smallest of them.
        widest: most devices of the type on one node, idle or not.
    """

    __slots__ = ("capacity_bytes", "role", "rooms", "widest")

    def __init__(self, role: Role, capacity_bytes: int, widest: int) -> None:
        """Begin without an idle device."""
        self.role, self.capacity_bytes, self.widest = role, capacity_bytes, widest
        self.rooms: dict[Node, list[DeviceId]] = {}

    def replica_rank(self, stage: StageKey) -> int:
        """Return 0 to 3: the virtual replica V0 to V3 that this type is the primary of."""
        lacks_encode = StageKey(stage.model, StageKind.ENCODE) not in self.role
        lacks_decode = StageKey(stage.model, StageKind.DECODE) not in self.role
        return int(lacks_encode) + 2 * int(lacks_decode)

    def teams(self, degree: int) -> int:
        """Return how many teams of a degree its idle devices make."""
        return sum(len(room) // degree for room in self.rooms.values())

    def take(self, degree: int) -> Team | None:
        """Take a team on the node with the most idle devices, as the authors' code does."""
        enough = [(-len(room), node) for node, room in self.rooms.items() if len(room) >= degree]
        if not enough:
            return None
        room = self.rooms[min(enough)[1]]
        team = tuple(room[:degree])
        del room[:degree]
        return team


def primaries(decision: Round, reserved: Collection[DeviceId]) -> list[Primary]:
    """Return the types of a placement, with their idle devices that are not reserved."""
    found: dict[Role, Primary] = {}
    counts: dict[tuple[Role, Node], int] = {}
    idle = decision.board.idle
    for device in decision.board.view.devices:
        role, node = device.desired, device.info.node
        if not any(stage.kind is StageKind.DIFFUSE for stage in role):
            continue
        counts[role, node] = counts.get((role, node), 0) + 1
        primary = found.setdefault(role, Primary(role, device.capacity_bytes, 0))
        primary.capacity_bytes = min(primary.capacity_bytes, device.capacity_bytes)
        primary.widest = max(primary.widest, counts[role, node])
        if device.info.id in idle and device.info.id not in reserved:
            primary.rooms.setdefault(node, []).append(device.info.id)
    return sorted(found.values(), key=lambda primary: sorted(primary.role))
