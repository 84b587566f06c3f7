"""Stage-level rule: encode and decode on auxiliaries, diffuse by an allotment (B5 and B6).

Which devices are auxiliaries is the placement's matter: stages with a pool run there, others on one
idle device of those that also diffuse.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.types import StageKind, StageTask
from schedulers.baselines.allotment import Allotment
from schedulers.baselines.orders import Order
from schedulers.dispatch.auxiliary import place_decodes, place_encodes
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


def place_auxiliaries(decision: Round, tasks: Sequence[StageTask], order: Order) -> list[StageTask]:
    """Place decodes and encodes in order; return the diffuses in order."""
    ordered = sorted(tasks, key=lambda task: order(decision, task))
    of = {kind: [t for t in ordered if t.stage.kind is kind] for kind in StageKind}
    place_decodes(decision, of[StageKind.DECODE])
    place_encodes(decision, of[StageKind.ENCODE])
    return of[StageKind.DIFFUSE]
