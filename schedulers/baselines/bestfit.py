"""A degree per request, on any node that has room: the dynamic allotment of B3, B4 and B6.

The degree is the largest that is 0.8 efficient (`CostModel.best_degree`), or what the nodes allow of
it; the node is the one with the fewest idle devices that suffices.
"""

from __future__ import annotations

from engine.types import ModelId, Shape, StageKind, StageTask
from schedulers.baselines.allotment import Team, fitting_degrees
from schedulers.dispatch.board import Layout, Node
from schedulers.dispatch.prospects import sibling
from schedulers.dispatch.round import Round


class BestFit:
    """Gives each request its best degree on the fullest node that has room."""

    def __init__(self) -> None:
        """Know no size yet."""
        self._degrees: dict[tuple[ModelId, Shape], int | None] = {}
        self._layout: Layout | None = None

    def refusal(self, decision: Round, task: StageTask) -> str | None:
        """Refuse nothing that the cluster could run."""
        del decision, task
        return None

    def offer(self, decision: Round) -> BestFitOffer:
        """Offer every idle device."""
        if decision.board.layout is not self._layout:
            self._layout = decision.board.layout
            self._degrees.clear()
        return BestFitOffer(self, decision)

    def degree(self, decision: Round, task: StageTask) -> int | None:
        """Return a request's best degree that fits a node; None while none fits."""
        request = task.request
        key = (request.model, request.shape)
        if key not in self._degrees:
            best = decision.cost.best_degree(request.model, request.shape)
            fitting = fitting_degrees(decision, task)
            narrower = [k for k in fitting if k <= best]
            self._degrees[key] = max(narrower) if narrower else min(fitting, default=None)
        return self._degrees[key]


class BestFitOffer:
    """What one decision has left."""

    def __init__(self, allotment: BestFit, decision: Round) -> None:
        """Offer what the board shows as idle."""
        self._allotment, self._decision = allotment, decision

    def take(self, task: StageTask) -> Team | None:
        """Return a team of the request's degree on the fullest node that has room for it."""
        degree = self._allotment.degree(self._decision, task)
        if degree is None:
            return None
        node = fullest(self._decision, task, degree)
        if node is None:
            return None
        stage = sibling(task.stage, StageKind.DIFFUSE)
        return self._decision.board.choose(stage, node, degree, task.came_from)


def fullest(decision: Round, task: StageTask, degree: int) -> Node | None:
    """Return the node with the fewest idle devices of those with at least `degree`."""
    rooms = decision.board.rooms(sibling(task.stage, StageKind.DIFFUSE))
    enough = [(len(room), node) for node, room in rooms.items() if len(room) >= degree]
    return min(enough)[1] if enough else None
