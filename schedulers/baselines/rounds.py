"""Deadline rounds, the policy of TetriServe (arXiv 2510.01565).

Diffuses are placed, widened, narrowed and paused at the ends of fixed rounds only. Every request,
running or not, asks for the degree that meets its deadline with the fewest GPU-hours. Requests that
would be definitely late if they were deferred come first, as many as fit: each is worth the
same, so the group knapsack's optimum takes the narrowest first. Then come those that can wait, in
order of deadline, then the late ones, and what is left widens the most urgent.

A running diffuse stays where it is unless one that must run now needs its devices: then it goes on
with the fewest that suffice it, or pauses if it was not admitted. TetriServe ends a round's steps
with the round; here a change takes effect at the next step boundary, however long the step, and so
a deferral is reckoned as a round and the longest step in the air.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.types import Pause, Resize, StageKind, StageTask
from schedulers.baselines.auxiliaries import place_auxiliaries
from schedulers.baselines.deadlines import launch
from schedulers.baselines.orders import earliest_deadline
from schedulers.baselines.ticks import Ticks
from schedulers.baselines.widening import onward_on, widen_fresh, widen_running
from schedulers.dispatch.board import Node
from schedulers.dispatch.prospects import Curve, Prospect, Underway
from schedulers.dispatch.round import Round

Seat = tuple[int, int]  # a diffuse by its request's number and its output, whatever the attempt


class Claim:
    """What one active diffuse asks for in a round: it waits (`prospect`) or runs (`underway`).

    Attributes:
        degree: with the fewest GPU-hours of those that meet the deadline; the least if none does.
        is_late: no degree meets the deadline.
        is_critical: it would be definitely late if it had no devices until another round has room for it.
    """

    __slots__ = ("degree", "is_critical", "is_late", "prospect", "task", "underway")

    def __init__(
        self, task: StageTask, curve: Curve, *, steps: int, slack_s: float, defer_s: float
    ) -> None:
        """Weigh the degrees; `slack_s` is what the remaining `steps` may take."""
        self.task = task
        self.prospect: Prospect | None = None
        self.underway: Underway | None = None
        enough = [k for k in curve.degrees if steps * curve.step_s[k] <= slack_s]
        self.is_late = not enough
        self.degree = min(enough or curve.degrees[:1], key=lambda k: (k * curve.step_s[k], k))
        self.is_critical = not self.is_late and steps * curve.fastest_s > slack_s - defer_s


class Drain:
    """A node that gives way to one request; until then its idle devices are kept."""

    __slots__ = ("node", "until_s")

    def __init__(self, node: Node, until_s: float) -> None:
        """Keep `node` until its victims have reached their boundaries."""
        self.node, self.until_s = node, until_s


class DeadlineRounds:
    """Decides about diffuses once a round; encodes and decodes start at once.

    Args:
        round_s: length of a round.
    """

    def __init__(self, round_s: float) -> None:
        """Begin with the first request."""
        self._round_s = round_s
        self._ticks = Ticks(round_s)
        self._drains: dict[Seat, Drain] = {}

    def refusal(self, decision: Round, task: StageTask) -> str | None:
        """Refuse nothing that the cluster could run."""
        del decision, task
        return None

    def decide(self, decision: Round, tasks: Sequence[StageTask]) -> float | None:
        """Place auxiliaries now, and diffuses if a round ends now."""
        diffuses = place_auxiliaries(decision, tasks, earliest_deadline)
        if not diffuses and not decision.board.diffusing:
            self._ticks.rest()
        elif self._ticks.strike(decision.now_s):
            self._end_round(decision, diffuses)
        else:
            for task in diffuses:
                decision.hold(task, "waits for the end of the round")
        return self._ticks.next_s

    def _end_round(self, decision: Round, diffuses: Sequence[StageTask]) -> None:
        defer_s = self._deferral_s(decision)
        waiting = [_waiting(decision, task, defer_s) for task in diffuses]
        running = [_running(decision, underway, defer_s) for underway in decision.underway]
        admitted = admit([*waiting, *running], _capacity(decision))
        yielding = Yielding(decision, running, admitted)
        self._keep_drained(decision, waiting)
        for claim in sorted(waiting, key=_urgency):
            if self._place(decision, claim):
                continue
            if claim.is_critical and id(claim) in admitted:
                self._drain(decision, claim, yielding)
            decision.hold(claim.task, "waits for a team: not admitted to this round, or no room")
        widen_fresh(decision)
        widen_running(decision)

    def _deferral_s(self, decision: Round) -> float:
        """Return how long who gets nothing now may have to wait: a round and the longest step."""
        longest_s = max((u.boundary_s - decision.now_s for u in decision.underway), default=0.0)
        return self._round_s + longest_s

    def _keep_drained(self, decision: Round, waiting: Sequence[Claim]) -> None:
        """Give drained nodes to those they were drained for, or go on keeping their idle devices."""
        drains, self._drains = self._drains, {}
        for claim in sorted(waiting, key=_urgency):
            drain = drains.get(_seat(claim.task))
            if drain is None or claim.prospect is None:
                continue
            room = decision.board.rooms(claim.prospect.stage).get(drain.node, [])
            if len(room) >= claim.degree:
                continue  # it is placed there or elsewhere in a moment
            if decision.now_s <= drain.until_s + self._round_s:
                self._drains[_seat(claim.task)] = drain
                decision.board.take(list(room))

    def _place(self, decision: Round, claim: Claim) -> bool:
        """Launch a waiting diffuse at its degree, or a late one at what there is."""
        assert claim.prospect is not None  # only what waits is placed
        if _seat(claim.task) in self._drains:
            return False
        why = "late already: least degree" if claim.is_late else "fewest GPU-hours on time"
        return launch(decision, claim.prospect, claim.degree, why)

    def _drain(self, decision: Round, claim: Claim, yielding: Yielding) -> None:
        """Let running diffuses of one node give way to a critical one, and keep the node for it."""
        if _seat(claim.task) in self._drains:
            return
        best = min(
            (option for node in yielding.nodes if (option := yielding.option(claim, node))),
            key=lambda option: option[:3],
            default=None,
        )
        if best is not None:
            _count, until_s, node, victims = best
            self._drains[_seat(claim.task)] = Drain(node, until_s)
            yielding.carry_out(victims, claim.task)
            decision.board.take(list(decision.board.rooms(claim.task.stage).get(node, [])))


class Yielding:
    """Which running diffuses would give way in this round, by node."""

    def __init__(self, decision: Round, running: Sequence[Claim], admitted: set[int]) -> None:
        """Those that were not admitted may pause, others go on with their claimed degree."""
        self._decision = decision
        self.nodes: dict[Node, list[tuple[Claim, int]]] = {}
        node_of = decision.board.layout.node_of
        for claim in running:
            assert claim.underway is not None  # only what runs gives way
            left = claim.degree if id(claim) in admitted else 0
            if claim.underway.left and left < claim.underway.degree:
                node = node_of[claim.underway.view.assignment.team[0]]
                self.nodes.setdefault(node, []).append((claim, left))

    def option(
        self, claim: Claim, node: Node
    ) -> tuple[int, float, Node, list[tuple[Claim, int]]] | None:
        """Return how many would give way on a node, until when, where and who; None if too few."""
        decision = self._decision
        assert claim.prospect is not None  # only for what waits
        missing = claim.degree - len(decision.board.rooms(claim.task.stage).get(node, []))
        victims: list[tuple[Claim, int]] = []
        until_s = decision.now_s
        for victim, left in sorted(
            self.nodes[node], key=lambda v: (v[1] - _degree(v[0]), v[0].task.order)
        ):
            if missing <= 0:
                break
            assert victim.underway is not None
            if claim.prospect.on_time(claim.degree, victim.underway.boundary_s):
                victims.append((victim, left))
                missing -= victim.underway.degree - left
                until_s = max(until_s, victim.underway.boundary_s)
        return (len(victims), until_s, node, victims) if missing <= 0 else None

    def carry_out(self, victims: Sequence[tuple[Claim, int]], beneficiary: StageTask) -> None:
        """Ask the victims to pause or to go on narrower."""
        decision = self._decision
        for victim, left in victims:
            underway = victim.underway
            assert underway is not None
            why = f"gives way to {beneficiary.request.id}"
            if left:
                team = underway.view.assignment.team[:left]
                onward = onward_on(decision, underway, team, why)
                decision.resizes.append(Resize(underway.task.id, onward))
            else:
                decision.pauses.append(Pause(underway.task.id, why))
            decision.underway.remove(underway)
            for claims in self.nodes.values():
                claims[:] = [entry for entry in claims if entry[0] is not victim]


def _waiting(decision: Round, task: StageTask, defer_s: float) -> Claim:
    prospect = decision.prospect(task, late=False)
    slack_s = prospect.deadline_s - prospect.tail_s - prospect.lead_s - decision.now_s
    claim = Claim(task, prospect.curve, steps=prospect.steps, slack_s=slack_s, defer_s=defer_s)
    claim.prospect = prospect
    return claim


def _running(decision: Round, underway: Underway, defer_s: float) -> Claim:
    task = underway.task
    slack_s = task.request.deadline_s - decision.tail_s(task) - underway.boundary_s
    claim = Claim(task, underway.curve, steps=underway.left, slack_s=slack_s, defer_s=defer_s)
    claim.underway = underway
    return claim


def admit(claims: Sequence[Claim], capacity: int) -> set[int]:
    """Return which claims have devices in this round, by identity.

    The most that survive: all critical ones are worth the same, so narrow ones go first. What is
    left goes to those that can wait, then to the late ones.
    """
    critical = [claim for claim in claims if claim.is_critical]
    others = [claim for claim in claims if not claim.is_critical]
    critical.sort(key=lambda claim: (claim.degree, claim.task.order))
    admitted: set[int] = set()
    for claim in (*critical, *sorted(others, key=_urgency)):
        if claim.degree <= capacity:
            admitted.add(id(claim))
            capacity -= claim.degree
    return admitted


def _urgency(claim: Claim) -> tuple[bool, bool, tuple[float, float, int, int]]:
    return (not claim.is_critical, claim.is_late, claim.task.order)


def _capacity(decision: Round) -> int:
    """Return the devices that are idle and may diffuse, and those of diffuses that may change."""
    diffusing = {
        device
        for stage, homes in decision.board.layout.homes.items()
        if stage.kind is StageKind.DIFFUSE
        for device in homes
    }
    idle = sum(device in decision.board.idle for device in diffusing)
    return idle + sum(underway.degree for underway in decision.underway)


def _seat(task: StageTask) -> Seat:
    return (task.sequence, task.image_index)


def _degree(claim: Claim) -> int:
    assert claim.underway is not None
    return claim.underway.degree
