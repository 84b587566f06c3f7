"""Pipeline-level rule: a request keeps one team from its encode to its last decode (B1 to B4).

The whole team is busy throughout, also while an encode or a decode uses one device of it: that is
what it means to run pipelines rather than stages. Between stages nobody else gets the team.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.types import DeviceId, StageKind, StageTask
from schedulers.baselines.allotment import Allotment
from schedulers.baselines.orders import Order, first_come
from schedulers.dispatch.round import Round

_LAST_FIRST = {kind: -i for i, kind in enumerate(StageKind)}


class PipelineRule:
    """Whole requests on whole teams.

    Args:
        allotment: which teams there are.
        order: of requests that wait for a team.
        overtakes: whether one that fits may start while one before it does not.
    """

    def __init__(self, allotment: Allotment, order: Order, *, overtakes: bool) -> None:
        """Keep the rule."""
        self._allotment, self._order, self._overtakes = allotment, order, overtakes

    def refusal(self, decision: Round, task: StageTask) -> str | None:
        """Refuse what the allotment has no team for."""
        return self._allotment.refusal(decision, task)

    def decide(self, decision: Round, tasks: Sequence[StageTask]) -> None:
        """Let requests go on with their own teams, then give free teams to those that wait."""
        waiting = self._go_on(decision, tasks)
        waiting.sort(key=lambda task: self._order(decision, task))
        self._start(decision, waiting)

    def _go_on(self, decision: Round, tasks: Sequence[StageTask]) -> list[StageTask]:
        """Launch next stages where the stages before ran; return the tasks that have no team.

        A team is kept for its request even if it is not idle: one of its outputs still runs.
        """
        devices = decision.board.devices
        own: list[StageTask] = []
        waiting: list[StageTask] = []
        for task in tasks:
            has_team = bool(task.came_from) and all(d in devices for d in task.came_from)
            (own if has_team else waiting).append(task)
        own.sort(key=lambda t: (_LAST_FIRST[t.stage.kind], *first_come(decision, t)))
        for task in own:
            if all(device in decision.board.idle for device in task.came_from):
                decision.launch(task, task.came_from, "goes on with the team of its request")
            else:
                decision.hold(task, "waits for the team of its request")
        kept: set[DeviceId] = {device for task in own for device in task.came_from}
        decision.board.take(device for device in kept if device in decision.board.idle)
        return waiting

    def _start(self, decision: Round, waiting: Sequence[StageTask]) -> None:
        offer = self._allotment.offer(decision)
        is_open = True
        for task in waiting:
            team = offer.take(task) if is_open and decision.board.idle else None
            if team is None:
                decision.hold(task, "waits for a team of its own")
                is_open = is_open and self._overtakes
            else:
                decision.launch(task, team, f"gets a team of {len(team)} for all its stages")
