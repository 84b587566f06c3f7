"""Stage-level rule: encode and decode on auxiliaries, diffuse by an allotment (B5 and B6).

Which devices are auxiliaries is the placement's matter (see `auxiliaries`).
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.types import StageTask
from schedulers.baselines.allotment import Allotment
from schedulers.baselines.auxiliaries import place_auxiliaries
from schedulers.baselines.orders import Order
from schedulers.dispatch.round import Round


class StageRule:
    """Each stage on its own devices, waiting tasks of each kind in one order."""

    def __init__(self, allotment: Allotment, order: Order) -> None:
        """Keep the rule."""
        self._allotment, self._order = allotment, order

    def refusal(self, decision: Round, task: StageTask) -> str | None:
        """Refuse what the allotment has no team for."""
        return self._allotment.refusal(decision, task)

    def decide(self, decision: Round, tasks: Sequence[StageTask]) -> None:
        """Place decodes, encodes and diffuses; whatever fits starts."""
        diffuses = place_auxiliaries(decision, tasks, self._order)
        offer = self._allotment.offer(decision)
        for task in diffuses:
            team = offer.take(task) if decision.board.idle else None
            if team is None:
                decision.hold(task, "waits for a team to diffuse on")
            else:
                decision.launch(task, team, f"diffuses at its degree of {len(team)}")
