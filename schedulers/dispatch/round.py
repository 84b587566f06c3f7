"""One decision in the making: the board, the tasks, and the plan as far as it has come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from engine.types import (
    Assignment,
    ClusterView,
    DeviceId,
    DispatchPlan,
    Held,
    Pause,
    PlanId,
    Prefetch,
    RequestId,
    Resize,
    StageKey,
    StageKind,
    StageTask,
)
from schedulers.dispatch.board import Board, Layout, Node
from schedulers.dispatch.prospects import Curve, Curves, Outlook, Prospect, Underway, sibling

if TYPE_CHECKING:
    from schedulers.cost import CostModel
    from schedulers.dispatch.knobs import Knobs


class Hold:
    """A node, or some of it, kept for one request until a time: narrow ones do not slip in before."""

    __slots__ = ("coming", "degree", "node", "request", "stage", "until_s")

    def __init__(
        self,
        request: RequestId,
        node: Node,
        until_s: float,
        *,
        stage: StageKey | None = None,
        degree: int = 0,
        coming: Iterable[DeviceId] = (),
    ) -> None:
        """Keep all of `node` for `request`, or `degree` devices for its `stage`.

        Those that are `coming` are busy still, but will be given up.
        """
        self.request, self.node, self.until_s = request, node, until_s
        self.stage, self.degree, self.coming = stage, degree, frozenset(coming)

    def update(self, board: Board) -> None:
        """Stop counting on devices that have come, or are lost."""
        self.coming = frozenset(
            d for d in self.coming if d in board.devices and d not in board.idle
        )

    def spares(self, board: Board) -> int:
        """Return how many idle devices others may take however long they need them."""
        if self.stage is None:
            return 0
        idle = board.rooms(self.stage).get(self.node, ())
        return len(idle) + len(self.coming) - self.degree


class Round:
    """Everything one decision works with.

    Attributes:
        holds: nodes kept for a request; they outlive the round.
        contended: more requests wait than devices are idle, so that wasteful degrees are off.
        taken_until_s: when devices that this decision has given away are expected back.
        pool_wait_s: per decode stage, what a decode that came now would wait for its pool.
    """

    def __init__(
        self,
        view: ClusterView,
        layout: Layout,
        cost: CostModel,
        curves: Curves,
        *,
        knobs: Knobs,
        holds: dict[Node, Hold],
    ) -> None:
        """Begin with an empty plan."""
        self.board = Board(view, layout)
        self.now_s, self.cost, self.curves, self.knobs, self.holds = (
            view.now_s, cost, curves, knobs, holds,
        )  # fmt: skip
        for hold in holds.values():
            hold.update(self.board)
        self.contended = False
        self.pool_wait_s: dict[StageKey, float] = {}
        self.launches: list[Assignment] = []
        self.taken_until_s: dict[DeviceId, float] = {}
        self.held: list[Held] = []
        self.pauses: list[Pause] = []
        self.resizes: list[Resize] = []
        self.prefetches: list[Prefetch] = []
        self._underway: list[Underway] | None = None
        self._outlooks: dict[tuple[object, ...], Outlook] = {}

    @property
    def underway(self) -> list[Underway]:
        """Return the diffuses in the air that no one has asked to change yet, batches left out."""
        if self._underway is None:
            self._underway = [
                Underway(seen, self.curve_of(task), self.step_s(task, degree), self.now_s)
                for seen in self.board.diffusing
                if not (seen.is_changing or seen.assignment.riders)
                for task, degree in [(seen.assignment.task, seen.assignment.degree)]
            ]
        return self._underway

    def curve_of(self, task: StageTask) -> Curve:
        """Return the class of a task."""
        return self.curves.of(task.request.model, task.request.shape, lean=self.contended)

    def step_s(self, task: StageTask, degree: int) -> float:
        """Return the seconds of one denoise step of a task at a degree."""
        return self.cost.step_s(task.request.model, task.request.shape, degree)

    def decode_s(self, task: StageTask) -> float:
        """Return the seconds that a request's decode takes."""
        return self.cost.estimate(sibling(task.stage, StageKind.DECODE), task.request).duration_s

    def tail_s(self, task: StageTask) -> float:
        """Return the seconds from the end of a request's diffuse to its artifact."""
        decode = sibling(task.stage, StageKind.DECODE)
        handoff_s = self.cost.handoff_s(decode, task.request, same_device=False, same_node=False)
        return self.decode_s(task) + handoff_s + self.pool_wait_s.get(decode, 0.0)

    def outlook(self, task: StageTask) -> Outlook:
        """Return what lies ahead of a task of its class, computed once per decision."""
        request = task.request
        begins = task.stage.kind is StageKind.ENCODE
        key = (
            request.model,
            request.shape,
            request.steps - task.steps_done,
            begins,
            task.saved is None,
        )
        found = self._outlooks.get(key)
        if found is None:
            found = self._outlooks[key] = self._outlook(task)
        return found

    def _outlook(self, task: StageTask) -> Outlook:
        diffuse = sibling(task.stage, StageKind.DIFFUSE)
        lead_s = self.cost.handoff_s(diffuse, task.request, same_device=False, same_node=False)
        if task.saved is not None:
            lead_s += self.cost.change_s
        if task.stage.kind is StageKind.ENCODE:
            lead_s += self.cost.estimate(task.stage, task.request).duration_s
        steps = task.request.steps - task.steps_done
        return Outlook(self.curve_of(task), steps, lead_s=lead_s, tail_s=self.tail_s(task))

    def is_late(self, task: StageTask) -> bool:
        """Whether a waiting request cannot be on time any more, however fast it ran."""
        return self.now_s + self.outlook(task).best_s > task.request.deadline_s

    def prospect(self, task: StageTask, *, late: bool) -> Prospect:
        """Return a request that waits to begin or to diffuse, with what lies ahead of it."""
        return Prospect(task, self.outlook(task), late=late)

    def home(self, task: StageTask) -> Node | None:
        """Return the node where a task's input lies, if it takes longer to any other node."""
        if not task.came_from:
            return None
        across_s, within_s = (
            self.cost.handoff_s(task.stage, task.request, same_device=False, same_node=same)
            for same in (False, True)
        )
        return self.board.layout.node_of.get(task.came_from[0]) if across_s > within_s else None

    def lead_s(self, task: StageTask, team: Sequence[DeviceId]) -> float:
        """Return what passes before a launch's first step: hand-off, weights, forming the team."""
        source = task.came_from[0] if task.came_from else None
        node_of = self.board.layout.node_of
        lead_s = self.cost.handoff_s(
            task.stage,
            task.request,
            same_device=source in team,
            same_node=source is not None and node_of.get(source) == node_of[team[0]],
        )
        if task.saved is not None:
            lead_s += self.cost.change_s
        if self.board.lacks(task.stage, team):
            has_peer = self.board.has_peer(task.stage, team)
            lead_s += self.cost.load_s(task.stage, from_peer=has_peer)
        return lead_s

    def launch(
        self,
        task: StageTask,
        team: tuple[DeviceId, ...],
        why: str,
        riders: tuple[StageTask, ...] = (),
    ) -> None:
        """Put a task on a team of idle devices."""
        launch = self.assignment(task, team, why, riders)
        self.launches.append(launch)
        self.board.take(team)
        self.taken_until_s.update(dict.fromkeys(team, self.now_s + launch.expected_s))

    def assignment(
        self,
        task: StageTask,
        team: tuple[DeviceId, ...],
        why: str,
        riders: tuple[StageTask, ...] = (),
    ) -> Assignment:
        """Return a launch with what it is expected to cost."""
        estimate = self.cost.estimate(
            task.stage, task.request, degree=len(team), batch=1 + len(riders)
        )
        run_s = estimate.duration_s
        if task.steps_left:
            run_s *= task.steps_left / task.request.steps
        return Assignment(
            task=task,
            team=team,
            expected_s=self.lead_s(task, team) + run_s,
            activation_bytes=estimate.activation_bytes,
            why=why,
            riders=riders,
        )

    def onward(self, running: Underway, team: tuple[DeviceId, ...], why: str) -> Assignment:
        """Return how a running diffuse goes on with another team after its next boundary."""
        task, degree = running.task, len(team)
        return Assignment(
            task=task,
            team=team,
            expected_s=running.left * self.step_s(task, degree) + self.cost.change_s,
            activation_bytes=self.cost.estimate(
                task.stage, task.request, degree=degree
            ).activation_bytes,
            why=why,
        )

    def needed_bytes(self, stage: StageKey, task: StageTask, degree: int) -> int:
        """Return what a stage of a request takes on each device: weights and activations."""
        estimate = self.cost.estimate(stage, task.request, degree=degree)
        return self.board.view.weight_bytes[stage] + estimate.activation_bytes

    def rooms(self, stage: StageKey, task: StageTask, degree: int) -> dict[Node, list[DeviceId]]:
        """Return idle devices by node that may run a stage of a request and have the memory."""
        rooms = self.board.rooms(stage)
        needed = self.needed_bytes(stage, task, degree)
        if needed <= self.board.layout.least_capacity_bytes:
            return rooms
        devices = self.board.devices
        fitting = {
            node: [d for d in room if devices[d].capacity_bytes >= needed]
            for node, room in rooms.items()
        }
        return {node: room for node, room in fitting.items() if room}

    def hold(self, task: StageTask, reason: str, *, impossible: bool = False) -> None:
        """Leave a task waiting, and say why."""
        self.held.append(Held(task, reason, impossible))

    def refuse(self, task: StageTask, reason: str) -> None:
        """Give a request up, because it cannot be on time any more."""
        self.held.append(Held(task, reason, refused=True))

    def is_free_for(self, node: Node, task: StageTask, degree: int, end_s: float) -> bool:
        """Whether a node is not held, held for this request, or can spare a team until `end_s`."""
        hold = self.holds.get(node)
        if hold is None or hold.request == task.request.id or end_s <= hold.until_s:
            return True
        return degree <= hold.spares(self.board)

    def plan(self, plan_id: PlanId, next_decision_at_s: float | None) -> DispatchPlan:
        """Return what was decided."""
        return DispatchPlan(
            id=plan_id,
            assignments=tuple(self.launches),
            held=tuple(self.held),
            pauses=tuple(self.pauses),
            resizes=tuple(self.resizes),
            prefetches=tuple(self.prefetches),
            next_decision_at_s=next_decision_at_s,
        )
