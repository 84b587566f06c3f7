"""What a program may give out: how many teams of each width, of which kind of devices, and when.

Devices of one node that hold the same stages are a room: a primary type of the paper on a node.
Rooms that are worth the same to everybody are one kind. Degrees that divide one another pack like
coins: a set of teams fits the rooms of a kind if and only if, for every degree k, the teams at
least that wide need no more devices than the sum over rooms of k * floor(idle / k). So a kind needs
a row per degree instead of a row per node, which removes the symmetry between nodes. Other degrees
get a kind, and one row, per room.

Later moments are rows too (`windows`): what is still idle or will be free by then. An option that
starts now also takes devices from every window before its end, so waiting has a price and a value.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise

from engine.types import DeviceId, RequestId, StageKey, StageKind
from schedulers.dispatch.board import Node
from schedulers.dispatch.ilp import Demand
from schedulers.dispatch.prospects import Prospect
from schedulers.dispatch.round import Hold, Round

Stages = frozenset[StageKey]


class Room:
    """The devices of one node that should hold the same stages, and when each is free."""

    __slots__ = ("devices", "free_s", "node")

    def __init__(self, node: Node) -> None:
        """Begin empty."""
        self.node = node
        self.devices: list[DeviceId] = []
        self.free_s: list[float] = []


class Kind:
    """Rooms that are worth the same to everybody.

    Attributes:
        stages: what its devices should hold: the primary type.
        lacking: diffuse stages that some idle device of its rooms would have to load.
        hold: what its one room is held for, if it is.
    """

    __slots__ = ("hold", "lacking", "rooms", "row", "stages")

    def __init__(self, stages: Stages, lacking: Stages, hold: Hold | None) -> None:
        """Begin without rooms."""
        self.stages, self.lacking, self.hold = stages, lacking, hold
        self.rooms: list[Room] = []
        self.row = 0  # its first one in the program

    def is_open_to(self, request: RequestId, end_s: float) -> bool:
        """Whether nothing is held, or for this request, or only after `end_s`."""
        return self.hold is None or self.hold.request == request or end_s <= self.hold.until_s


class Supply:
    """The rooms of some nodes at the moments of a decision.

    Attributes:
        windows: moments at which something may start; the first is now.
        capacities: devices by row.
        relief_s: when a third of the busy devices will be free: how long it is to wait.
    """

    def __init__(
        self, decision: Round, nodes: Sequence[Node], degrees: Sequence[int], later: Sequence[float]
    ) -> None:
        """Count what is idle, and what will be at later moments (shares of the running teams)."""
        self._decision = decision
        self.rungs = _rungs(degrees)
        self._alone = not set(degrees) <= set(self.rungs)  # no ladder: every room by itself
        rooms = _rooms(decision, nodes)
        ends = sorted(at_s for _, room in rooms for at_s in room.free_s if at_s > decision.now_s)
        self.windows = _windows(decision.now_s, ends, later)
        self.relief_s = ends[len(ends) // 3] if ends else decision.now_s
        self.kinds = self._kinds(rooms)
        self.capacities: list[int] = []
        for kind in self.kinds:
            kind.row = len(self.capacities)
            self.capacities.extend(
                sum(width * (bisect_right(room.free_s, at_s) // width) for room in kind.rooms)
                for at_s in self.windows
                for width in self.rungs
            )

    def open_kinds(
        self, prospect: Prospect, window: int, degree: int, end_s: float
    ) -> Iterator[Kind]:
        """Yield the kinds in which a team of a degree could run a request from a window on."""
        rung = max(i for i, width in enumerate(self.rungs) if width <= degree)
        for kind in self.kinds:
            row = kind.row + window * len(self.rungs) + rung
            if (
                prospect.stage in kind.stages
                and degree <= self.capacities[row]
                and kind.is_open_to(prospect.task.request.id, end_s)
            ):
                yield kind

    def demands(self, kind: Kind, degree: int, window: int, run_s: float) -> list[Demand]:
        """Return what a team takes from the moment of a window until it ends."""
        end_s = self.windows[window] + run_s
        width = len(self.rungs)
        return [
            Demand(kind.row + later * width + rung, degree)
            for later in range(window, len(self.windows))
            if self.windows[later] < end_s
            for rung in range(width)
            if self.rungs[rung] <= degree
        ]

    def _kinds(self, rooms: list[tuple[Stages, Room]]) -> list[Kind]:
        kinds: dict[tuple[Stages, Stages, Node | None], Kind] = {}
        idle = self._decision.board.idle
        for stages, room in rooms:
            hold = self._decision.holds.get(room.node)
            lacking = frozenset(
                stage
                for stage in stages
                if stage.kind is StageKind.DIFFUSE
                and any(d in idle and stage not in idle[d].resident for d in room.devices)
            )
            key = (stages, lacking, room.node if hold is not None or self._alone else None)
            kinds.setdefault(key, Kind(stages, lacking, hold)).rooms.append(room)
        return list(kinds.values())


def _rungs(degrees: Sequence[int]) -> tuple[int, ...]:
    """Return the degrees if each divides the next, else only 1: devices are merely counted."""
    rungs = tuple(sorted({1, *degrees}))
    chain = all(wide % narrow == 0 for narrow, wide in pairwise(rungs))
    return rungs if chain else (1,)


def _rooms(decision: Round, nodes: Sequence[Node]) -> list[tuple[Stages, Room]]:
    """Return the rooms that may diffuse, with when their devices are free, ascending."""
    board, wanted = decision.board, set(nodes)
    launched = {
        device: decision.now_s + launch.expected_s
        for launch in decision.launches
        for device in launch.team
    }
    rooms: dict[tuple[Node, Stages], Room] = {}
    for device, seen in board.devices.items():
        node = seen.info.node
        if node in wanted and any(stage.kind is StageKind.DIFFUSE for stage in seen.desired):
            room = rooms.setdefault((node, seen.desired), Room(node))
            room.devices.append(device)
            if device in board.idle:
                room.free_s.append(decision.now_s)
            else:
                end_s = launched.get(device) or seen.busy_until_s or decision.now_s
                room.free_s.append(max(end_s, decision.now_s + 1e-3))
    for room in rooms.values():
        room.free_s.sort()
    return [(stages, room) for (_, stages), room in rooms.items()]


def _windows(now_s: float, ends: Sequence[float], later: Sequence[float]) -> tuple[float, ...]:
    """Return now and the moments by which given shares of the busy devices will be free."""
    if not ends:
        return (now_s,)
    moments = {ends[min(len(ends) - 1, int(share * len(ends)))] for share in later}
    return (now_s, *sorted(moments))
