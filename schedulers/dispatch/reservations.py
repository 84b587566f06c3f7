"""Reservations: a node kept for a request that finds no room, so that it never starves.

For wide requests it is a tail knob, off by default: it shortens their tail and costs attainment
under random arrivals (the design notes' finding; benchmarks/scheduling measures ours). For elders
it is what makes the starvation bound one: without it narrower requests take every device that
becomes free, one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from schedulers.dispatch.prospects import Prospect
from schedulers.dispatch.round import Hold, Round

if TYPE_CHECKING:
    from schedulers.dispatch.horizon import Horizon

WIDE = 4
NODES_PER_HOLD = 4


class Reservations:
    """Makes holds: one for each elder, for wide requests at most one per four nodes."""

    def __init__(self, decision: Round, horizon: Horizon) -> None:
        """Count what is held already."""
        self._decision, self._horizon = decision, horizon
        self._most = len(decision.board.layout.nodes) // NODES_PER_HOLD

    def consider(self, prospect: Prospect, *, background_waits: bool) -> None:
        """Hold the node that first has room for an unplaced elder or wide request."""
        if prospect.is_elder:
            self._keep(prospect)
        elif self._may_hold(prospect, background_waits=background_waits):
            self._hold(prospect)

    def _keep(self, elder: Prospect) -> None:
        """Hold a node for an elder until it starts, however long what runs there takes."""
        holds, degree = self._decision.holds, elder.curve.degrees[0]
        mine = [hold for hold in holds.values() if hold.request == elder.task.request.id]
        for hold in mine:
            hold.until_s = max(hold.until_s, self._decision.now_s)
            if not self._horizon.has_room(elder.stage, degree, hold.node):  # it has lost devices
                del holds[hold.node]
        if not elder.begins and not any(hold.node in holds for hold in mine):
            self._hold(elder)

    def _may_hold(self, prospect: Prospect, *, background_waits: bool) -> bool:
        decision, request = self._decision, prospect.task.request.id
        return (
            decision.knobs.reserve
            and not prospect.is_background
            and not background_waits
            and prospect.curve.degrees[0] >= WIDE
            and len(decision.holds) < self._most
            and all(hold.request != request for hold in decision.holds.values())
        )

    def _hold(self, prospect: Prospect) -> None:
        found = self._horizon.node_for(prospect.stage, prospect.curve.degrees[0])
        if found is not None:
            at_s, node = found
            self._decision.holds[node] = Hold(prospect.task.request.id, node, at_s)
