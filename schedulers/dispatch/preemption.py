"""Preemption at step boundaries: pause running diffuses for a request that would be late.

Victims are hopeless ones first, then those that still meet their own deadline after a pause. The
node is held for the beneficiary until the last boundary. The idea is GF-DiT's and GenServe's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from engine.types import DeviceId, Pause, Resize, StageTask, TaskId
from schedulers.dispatch.board import Node
from schedulers.dispatch.elders import elders
from schedulers.dispatch.prospects import Prospect, Underway
from schedulers.dispatch.round import Hold, Round

GUARD = 0.1  # of a victim's fastest run, kept as slack when it is judged whether it can wait


class Option(NamedTuple):
    """One way to make room: the better, the less its first four fields.

    Attributes:
        tier: of the worst victim: 0 is hopeless, 1 can wait.
        lost_s: device-seconds that stopping costs.
        until_s: when the last victim has stopped.
        victims: each with whether it only shrinks.
    """

    tier: int
    lost_s: float
    until_s: float
    node: Node
    degree: int
    victims: Sequence[tuple[Underway, bool]]


class Preemption:
    """Thinks through at most `knobs.attempts` preemptions of one decision."""

    def __init__(self, decision: Round) -> None:
        """Begin with all attempts left."""
        self._decision = decision
        self._left = decision.knobs.attempts if decision.knobs.preempt else 0
        self._by_node: dict[Node, list[Underway]] | None = None
        self._stopped: set[int] = set()
        self._elders: Mapping[TaskId, StageTask] | None = None

    def make_room(self, prospect: Prospect) -> bool:
        """Pause what it takes to let a request start in time; False if nothing would help."""
        if self._left <= 0:
            return False
        self._left -= 1
        options = [
            option
            for degree in prospect.curve.degrees
            for node in self._nodes()
            if (option := self._option(prospect, node, degree)) is not None
        ]
        if not options:
            return False
        self._carry_out(prospect, min(options, key=lambda option: option[:4]))
        return True

    def _nodes(self) -> dict[Node, list[Underway]]:
        if self._by_node is None:
            by_node: dict[Node, list[Underway]] = defaultdict(list)
            node_of = self._decision.board.layout.node_of
            for underway in self._decision.underway:
                by_node[node_of[underway.view.assignment.team[0]]].append(underway)
            self._by_node = by_node
        return self._by_node

    def _option(self, prospect: Prospect, node: Node, degree: int) -> Option | None:
        """Return what would have to stop on a node for a degree, if that would help."""
        decision = self._decision
        if node in decision.holds:
            return None
        latest_s = prospect.deadline_s - prospect.tail_s - prospect.run_s(degree)
        latest_s -= decision.cost.change_s
        missing = degree - len(decision.rooms(prospect.stage, prospect.task, degree).get(node, ()))
        candidates = sorted(
            (
                (tier, loss_s, i, underway)
                for i, underway in enumerate(self._nodes()[node])
                if underway.left
                and underway.boundary_s <= latest_s
                and id(underway) not in self._stopped
                and (tier := self._tier(prospect, underway, degree)) is not None
                for loss_s in [underway.degree * decision.cost.change_s]
            ),
        )
        victims: list[tuple[Underway, bool]] = []
        worst, loss_s, until_s = 0, 0.0, decision.now_s
        for tier, lost_s, _i, underway in candidates:
            if missing <= 0:
                break
            shrinks = 2 * missing <= underway.degree and self._can_shrink(underway)
            victims.append((underway, shrinks))
            missing -= underway.degree // 2 if shrinks else underway.degree
            worst, loss_s = max(worst, tier), loss_s + lost_s
            until_s = max(until_s, underway.boundary_s)
        return Option(worst, loss_s, until_s, node, degree, victims) if missing <= 0 else None

    def _can_shrink(self, victim: Underway) -> bool:
        """Whether half a victim's team is enough for it, in memory and in time."""
        half = victim.degree // 2
        if not self._decision.knobs.demote or half not in victim.curve.step_s:
            return False
        rest_s = victim.left * victim.curve.step_s[half] + self._decision.tail_s(victim.task)
        ends_s = victim.boundary_s + self._decision.cost.change_s + rest_s
        return ends_s <= victim.task.request.deadline_s

    def _tier(self, prospect: Prospect, victim: Underway, degree: int) -> int | None:
        """Return 0 for a hopeless victim, 1 for one that can wait, None for one that cannot."""
        decision, task = self._decision, victim.task
        request = task.request
        if request.priority > prospect.task.request.priority or self._is_elder(task):
            return None
        rest_s = victim.left * victim.curve.fastest_s + decision.tail_s(task)
        if victim.boundary_s + rest_s > request.deadline_s:
            return 0
        guard_s = GUARD * request.steps * victim.curve.fastest_s
        back_s = victim.boundary_s + prospect.run_s(degree) + decision.cost.change_s + guard_s
        return 1 if back_s + rest_s <= request.deadline_s else None

    def _is_elder(self, task: StageTask) -> bool:
        if self._elders is None:
            running = (underway.task for underway in self._decision.underway)
            late = (task for task in running if task.request.deadline_s < self._decision.now_s)
            self._elders = elders(self._decision, late)
        return task.id in self._elders

    def _carry_out(self, prospect: Prospect, option: Option) -> None:
        decision, request = self._decision, prospect.task.request.id
        why = f"makes room for {request}"
        coming: list[DeviceId] = []
        for victim, shrinks in option.victims:
            self._stopped.add(id(victim))
            decision.underway.remove(victim)
            team = victim.view.assignment.team
            stays = victim.degree // 2 if shrinks else 0
            coming += team[stays:]
            if shrinks:
                onward = decision.onward(victim, team[:stays], why)
                decision.resizes.append(Resize(victim.task.id, onward))
            else:
                decision.pauses.append(Pause(victim.task.id, why))
        decision.holds[option.node] = Hold(
            request,
            option.node,
            option.until_s,
            stage=prospect.stage,
            degree=option.degree,
            coming=coming,
        )
        decision.hold(
            prospect.task, f"waits for {len(option.victims)} stopped on node {option.node}"
        )
