"""Work-conserving scale-up: leftover devices double the degree of whoever gains most from them.

A running diffuse grows at its next step boundary; one launched in this decision grows at once.
"""

from __future__ import annotations

import heapq
from itertools import count

from engine.types import DeviceId, Resize, StageKind
from schedulers.dispatch.board import Node
from schedulers.dispatch.prospects import Underway
from schedulers.dispatch.round import Round

LATE_WEIGHT = 3.0


def scale_up(decision: Round) -> None:
    """Hand out what is idle on unheld nodes, largest gain per device first."""
    if not decision.knobs.scale_up or not decision.board.idle:
        return
    growers = _Growers(decision)
    for node in sorted({d.info.node for d in decision.board.idle.values()}):
        if node not in decision.holds:
            growers.serve(node)


class _Growers:
    """Everything that could use more devices, by node."""

    def __init__(self, decision: Round) -> None:
        self._decision, self._order = decision, count()
        node_of = decision.board.layout.node_of
        self._running: dict[Node, list[Underway]] = {}
        for underway in decision.underway if decision.knobs.resize else ():
            self._running.setdefault(node_of[underway.view.assignment.team[0]], []).append(underway)
        self._fresh: dict[Node, list[int]] = {}
        for i, launch in enumerate(decision.launches):
            if launch.task.stage.kind is StageKind.DIFFUSE and not launch.riders:
                self._fresh.setdefault(node_of[launch.team[0]], []).append(i)

    def serve(self, node: Node) -> None:
        heap = [
            entry
            for grower in (*self._running.get(node, ()), *self._fresh.get(node, ()))
            if (entry := self._entry(grower)) is not None
        ]
        heapq.heapify(heap)
        while heap:
            _gain, _order, grower = heapq.heappop(heap)
            grown = self._grow(node, grower)
            if isinstance(grown, int) and (entry := self._entry(grown)) is not None:
                heapq.heappush(heap, entry)

    def _entry(self, grower: Underway | int) -> tuple[float, int, Underway | int] | None:
        """Return a heap entry with the seconds gained per device, negative; None if too few."""
        decision = self._decision
        if isinstance(grower, Underway):
            task, degree, steps = grower.task, grower.degree, grower.left
            cost_s, start_s = decision.cost.change_s, grower.boundary_s
        else:
            launch = decision.launches[grower]
            task, degree, steps = launch.task, launch.degree, launch.task.steps_left
            cost_s, start_s = 0.0, decision.now_s
        curve = decision.curve_of(task)
        if 2 * degree not in curve.step_s:
            return None
        now_step_s = decision.step_s(task, degree)
        gain_s = steps * (now_step_s - curve.step_s[2 * degree]) - cost_s
        if gain_s <= decision.knobs.scale_up_gain_s:
            return None
        late = start_s + steps * now_step_s + decision.tail_s(task) > task.request.deadline_s
        weight = LATE_WEIGHT if late else 1.0
        return (-weight * gain_s / degree, next(self._order), grower)

    def _grow(self, node: Node, grower: Underway | int) -> int | None:
        """Double a grower's team; return it if it may grow again in this decision."""
        decision = self._decision
        launch = (
            grower.view.assignment if isinstance(grower, Underway) else decision.launches[grower]
        )
        stage = launch.task.stage
        room = decision.rooms(stage, launch.task, 2 * launch.degree).get(node, [])
        if len(room) < launch.degree:
            return None
        more = decision.board.pick(stage, room, launch.degree)
        team: tuple[DeviceId, ...] = tuple(sorted((*launch.team, *more)))
        decision.board.take(more)
        why = f"grew to degree {len(team)} with leftover devices"
        if isinstance(grower, Underway):
            decision.resizes.append(Resize(grower.task.id, decision.onward(grower, team, why)))
            return None
        decision.launches[grower] = decision.assignment(launch.task, team, why, launch.riders)
        return grower
