"""Reservations: a node kept for a wide request that finds no room, so that it never starves.

A tail knob, off by default: it shortens the tail of wide requests and costs attainment under
random arrivals (the design notes' finding; benchmarks/scheduling measures ours).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from schedulers.dispatch.prospects import Prospect
from schedulers.dispatch.round import Hold, Round

if TYPE_CHECKING:
    from schedulers.dispatch.starts import Horizon

WIDE = 4
NODES_PER_HOLD = 4


class Reservations:
    """Makes holds for wide requests, at most one per four nodes."""

    def __init__(self, decision: Round, horizon: Horizon) -> None:
        """Count what is held already."""
        self._decision, self._horizon = decision, horizon
        self._most = len(decision.board.layout.nodes) // NODES_PER_HOLD

    def consider(self, prospect: Prospect, *, background_waits: bool) -> None:
        """Hold the node that first has room for an unplaced wide request."""
        decision, degree = self._decision, prospect.curve.degrees[0]
        holds = decision.holds
        if (
            not decision.knobs.reserve
            or prospect.is_background
            or background_waits
            or degree < WIDE
            or len(holds) >= self._most
            or any(hold.request == prospect.task.request.id for hold in holds.values())
        ):
            return
        found = self._horizon.node_for(prospect.stage, degree)
        if found is not None:
            at_s, node = found
            holds[node] = Hold(prospect.task.request.id, node, at_s)
