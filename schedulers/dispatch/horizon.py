"""When devices become free: what a request that finds no room now may wait for."""

from __future__ import annotations

from engine.types import DeviceId, StageKey
from schedulers.dispatch.board import Node
from schedulers.dispatch.prospects import Prospect
from schedulers.dispatch.round import Round

Moment = tuple[float, DeviceId]
"""When a device becomes free."""


class Horizon:
    """When each degree becomes possible on some node if all that runs just ends."""

    def __init__(self, decision: Round) -> None:
        """Look at the expected ends of everything in the air, as far as it is asked."""
        self._decision = decision
        self._ends: dict[StageKey, dict[Node, list[Moment]]] = {}
        self._earliest: dict[tuple[StageKey, int], float] = {}
        self._claimed_s: dict[DeviceId, float] = {}
        self._seen = 0

    def _ends_of(self, stage: StageKey) -> dict[Node, list[Moment]]:
        """Return when each node's devices that may run a stage become free, soonest first."""
        if self._seen != len(self._decision.launches):  # what was launched since is not free
            self._seen = len(self._decision.launches)
            self._ends.clear()
            self._earliest.clear()
        if stage not in self._ends:
            ends: dict[Node, list[Moment]] = {}
            board, taken = self._decision.board, self._decision.taken_until_s
            for device in board.layout.homes.get(stage, ()):
                seen = board.devices[device]
                at_s = taken.get(device) or seen.busy_until_s or board.now_s
                at_s = max(at_s, self._claimed_s.get(device, at_s))
                ends.setdefault(seen.info.node, []).append((at_s, device))
            for moments in ends.values():
                moments.sort()
            self._ends[stage] = ends
        return self._ends[stage]

    def earliest_s(self, stage: StageKey, degree: int) -> float:
        """Return the first moment at which some node has `degree` devices free for a stage."""
        ends = self._ends_of(stage)
        if (stage, degree) not in self._earliest:
            moments = [e[degree - 1][0] for e in ends.values() if len(e) >= degree]
            self._earliest[stage, degree] = min(moments, default=float("inf"))
        return self._earliest[stage, degree]

    def claim_one(self, prospect: Prospect) -> None:
        """Count the device that a prospect waits for as taken, for all that come after it."""
        ends = self._ends_of(prospect.stage)
        moments = min(ends.values(), key=lambda moments: moments[0])
        start_s, device = moments[0]
        self._claimed_s[device] = start_s + prospect.run_s(1)
        moments[0] = (self._claimed_s[device], device)
        moments.sort()
        self._ends = {prospect.stage: ends}
        self._earliest.clear()

    def has_room(self, stage: StageKey, degree: int, node: Node) -> bool:
        """Whether a node has so many devices for a stage at all, idle or not."""
        return len(self._ends_of(stage).get(node, ())) >= degree

    def node_for(self, stage: StageKey, degree: int) -> tuple[float, Node] | None:
        """Return the unheld node that first has `degree` devices free, and when."""
        found = [
            (ends[degree - 1][0], node)
            for node, ends in self._ends_of(stage).items()
            if len(ends) >= degree and node not in self._decision.holds
        ]
        return min(found, default=None)
