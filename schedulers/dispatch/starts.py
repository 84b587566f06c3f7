"""Greedy starts: each waiting diffuse in order gets the least degree that is on time, best fit.

Policy T of the design notes: what cannot be on time any more goes behind all others and takes its
cheapest degree; what would be late waits if that helps, else preempts, else takes what there is.
"""

from __future__ import annotations

from collections.abc import Sequence

from schedulers.dispatch.board import Node
from schedulers.dispatch.horizon import Horizon
from schedulers.dispatch.preemption import Preemption
from schedulers.dispatch.prospects import Prospect
from schedulers.dispatch.reservations import Reservations
from schedulers.dispatch.round import Round


def start_greedily(decision: Round, prospects: Sequence[Prospect]) -> None:
    """Start what can start, in order; `prospects` come most urgent first."""
    horizon = Horizon(decision)
    preemption = Preemption(decision)
    reservations = Reservations(decision, horizon)
    background_waits = any(p.is_background for p in prospects)
    for prospect in prospects:
        if prospect.begins and begin(decision, prospect):
            continue
        if not start_in_time(decision, prospect) and not start_anyhow(
            decision, prospect, horizon, preemption
        ):
            reservations.consider(prospect, background_waits=background_waits)


def begin(decision: Round, prospect: Prospect) -> bool:
    """Encode at once if any device is idle: it takes next to nothing and the diffuse comes nearer.

    Best on a node where the least degree that is on time has room right after it.
    """
    stage = prospect.task.stage
    rooms = decision.rooms(stage, prospect.task, 1)
    end_s = decision.now_s + prospect.lead_s
    open_nodes = [n for n in rooms if decision.is_free_for(n, prospect.task, 1, end_s)]
    if not open_nodes:
        return False
    degrees = prospect.curve.degrees
    degree = next((k for k in degrees if prospect.on_time(k, decision.now_s)), degrees[0])
    wide = decision.board.rooms(prospect.stage)

    def fit(node: Node) -> tuple[bool, int, Node]:
        room = len(wide.get(node, ()))
        return (room < degree, room, node)

    node = min(open_nodes, key=fit)
    team = decision.board.pick(stage, rooms[node], 1, avoid=prospect.task.failed_on)
    decision.launch(prospect.task, team, f"begins on node {node}")
    return True


def start_in_time(decision: Round, prospect: Prospect) -> bool:
    """Start at the least degree that meets the deadline now, if some node has room for it."""
    if prospect.is_background or prospect.begins:
        return False
    for degree in prospect.curve.degrees:
        if prospect.on_time(degree, decision.now_s):
            node = best_fit(decision, prospect, degree)
            if node is not None:
                launch(decision, prospect, node, degree, "least degree that is on time")
                return True
    return False


def start_anyhow(
    decision: Round, prospect: Prospect, horizon: Horizon, preemption: Preemption
) -> bool:
    """Start late work, or wait or preempt for what could still be on time."""
    if prospect.is_background:
        return _start_background(decision, prospect)
    if _waits(decision, prospect, horizon, preemption):
        return False
    return not preemption.make_room(prospect) and _start_widest(decision, prospect)


def _waits(decision: Round, prospect: Prospect, horizon: Horizon, preemption: Preemption) -> bool:
    """Let a request that cannot start in time now wait for what it needs, if that will come."""
    task = prospect.task
    is_kept_for = any(hold.request == task.request.id for hold in decision.holds.values())
    degree = _enough(prospect, horizon)
    if degree == 1:
        hurries = not is_kept_for and _is_tight(decision, prospect, horizon)
        if hurries and preemption.make_room(prospect):
            return True
        if decision.knobs.claim:
            horizon.claim_one(prospect)
    if degree is not None:
        decision.hold(task, "waits: a node will free a sufficient degree in time")
    elif is_kept_for:
        decision.hold(task, "waits for the node that is kept for it")
    return degree is not None or is_kept_for


def _enough(prospect: Prospect, horizon: Horizon, spare_s: float = 0.0) -> int | None:
    """Return the least degree that will be free in time, with `spare_s` to spare, if any."""
    for degree in prospect.curve.degrees:
        if prospect.on_time(degree, horizon.earliest_s(prospect.stage, degree) + spare_s):
            return degree
    return None


def _is_tight(decision: Round, prospect: Prospect, horizon: Horizon) -> bool:
    """Whether what it waits for comes so late that nobody more urgent may come between."""
    spare_s = decision.knobs.wait_guard * prospect.steps * prospect.curve.fastest_s
    return spare_s > 0 and _enough(prospect, horizon, spare_s) is None


def _start_widest(decision: Round, prospect: Prospect) -> bool:
    for degree in () if prospect.begins else reversed(prospect.curve.degrees):
        node = best_fit(decision, prospect, degree)
        if node is not None:
            launch(decision, prospect, node, degree, "largest degree there is, likely late")
            return True
    decision.hold(prospect.task, "waits: no node has room for any of its degrees")
    return False


def _start_background(decision: Round, prospect: Prospect) -> bool:
    if prospect.begins:
        decision.hold(prospect.task, "late already: waits for an idle device to begin")
        return False
    curve = prospect.curve
    cheapest = curve.cheapest
    for degree in (cheapest, *(k for k in curve.degrees if k < cheapest)):
        node = best_fit(decision, prospect, degree)
        if node is not None:
            launch(decision, prospect, node, degree, "late already: cheapest degree")
            return True
    decision.hold(prospect.task, "late already: waits for what the others leave")
    return False


def best_fit(decision: Round, prospect: Prospect, degree: int) -> Node | None:
    """Return the node with the fewest idle devices that still has `degree` of them.

    Of several that have as few, the one where its input lies, if that is nearer.
    """
    rooms, home = (
        decision.rooms(prospect.stage, prospect.task, degree),
        decision.home(prospect.task),
    )
    best: tuple[int, bool, Node] | None = None
    for node, room in rooms.items():
        fit = (len(room), node != home, node)
        if len(room) < degree or (best is not None and fit >= best):
            continue
        end_s = decision.now_s + prospect.run_s(degree)
        if decision.is_free_for(node, prospect.task, degree, end_s):
            best = fit
    return None if best is None else best[2]


def launch(decision: Round, prospect: Prospect, node: Node, degree: int, why: str) -> None:
    """Start a prospect on a node, and drop what was held for it."""
    task = prospect.task
    room = decision.rooms(prospect.stage, task, degree)[node]
    team = decision.board.pick(prospect.stage, room, degree, task.came_from, task.failed_on)
    decision.launch(task, team, f"{why}: degree {degree} on node {node}")
    for held in [n for n, hold in decision.holds.items() if hold.request == task.request.id]:
        del decision.holds[held]
