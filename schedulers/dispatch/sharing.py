"""Batches: waiting requests that are alike ride along with one that has just been started.

One call of the denoiser (knob `step_batch`) or of the decoder (`decode_batch`) then serves all of
them. Off unless the knobs say otherwise, because results differ in their last bits. Only where it
pays: the batch takes less time than its members one after another would, and nobody's deadline is
given up for it. Encodes share a launch as well where their diffuses could, so that those come to be
ready together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from engine.types import Assignment, Purpose, StageKind, StageTask
from schedulers.dispatch.prospects import Prospect
from schedulers.dispatch.round import Round

if TYPE_CHECKING:
    from schedulers.cost import Estimate

WORTH_WHILE = 0.95  # most device-seconds of one more member, as a share of what it takes alone


def share_steps(decision: Round, prospects: Sequence[Prospect]) -> None:
    """Let prospects that were not started ride along with launches of this decision.

    Not in a decision that pauses something: that makes room for one of those that wait.
    """
    most = decision.knobs.step_batch
    if most == 1 or decision.pauses:
        return
    started = {task.id for launch in decision.launches for task in launch.tasks}
    waiting = [p for p in prospects if p.task.id not in started and _may_share(p.task)]
    leaders = {p.task.id: p for p in prospects if p.task.id in started}
    for index, launch in enumerate(decision.launches):
        leader = leaders.get(launch.task.id)
        if leader is not None and launch.degree == 1 and _may_share(launch.task):
            batch = _gathered(decision, leader, waiting, most)
            waiting = [prospect for prospect in waiting if prospect not in batch]
            if len(batch) > 1:
                riders = [prospect.task for prospect in batch[1:]]
                decision.launches[index] = _together(decision, launch, riders)


def share_decodes(decision: Round, tasks: Sequence[StageTask]) -> None:
    """Let decodes that were held ride along with those that this decision launches."""
    most = decision.knobs.decode_batch
    if most == 1:
        return
    held = {one.task.id for one in decision.held}
    waiting = [task for task in tasks if task.id in held and _may_decode_together(task)]
    for index, launch in enumerate(decision.launches):
        if launch.degree == 1 and _may_decode_together(launch.task):
            batch = [launch.task]
            for task in waiting:
                if len(batch) < most and _decodes_pay(decision, [*batch, task]):
                    batch.append(task)
            waiting = [task for task in waiting if task not in batch]
            if len(batch) > 1:
                decision.launches[index] = _together(decision, launch, batch[1:])


def _may_decode_together(task: StageTask) -> bool:
    return task.stage.kind is StageKind.DECODE and task.purpose is Purpose.MAIN and not task.alone


def _decodes_pay(decision: Round, batch: Sequence[StageTask]) -> bool:
    """Whether a last decode is like the first, costs less than alone, and makes nobody late."""
    first, last = batch[0], batch[-1]
    alike = (last.stage, last.request.shape) == (first.stage, first.request.shape)
    together = _worth_while(decision, first, len(batch)) if alike else None
    if together is None:
        return False
    end_s, alone_s = decision.now_s + together.duration_s, decision.decode_s(first)
    deadlines_s = (task.request.deadline_s for task in batch)
    return all(end_s <= due_s or decision.now_s + alone_s > due_s for due_s in deadlines_s)


def _may_share(task: StageTask) -> bool:
    """Whether a task may be one of several: fresh, not suspected, nobody watches its steps."""
    request = task.request
    return (
        task.purpose is Purpose.MAIN
        and task.saved is None
        and not task.alone
        and not request.previews
        and request.source is None
    )


def _likeness(task: StageTask) -> tuple[object, ...]:
    request = task.request
    return task.stage, request.shape, request.steps, request.guidance_scale > 1


def _gathered(
    decision: Round, leader: Prospect, waiting: Sequence[Prospect], most: int
) -> list[Prospect]:
    """Return a leader with those that may ride along, most urgent first."""
    batch, alike = [leader], _likeness(leader.task)
    for prospect in waiting:
        if len(batch) == most:
            break
        if _likeness(prospect.task) == alike and _pays(decision, [*batch, prospect]):
            batch.append(prospect)
    return batch


def _pays(decision: Round, batch: Sequence[Prospect]) -> bool:
    """Whether a last member costs less than alone, and makes nobody late who can be on time."""
    count = len(batch)
    together = _worth_while(decision, batch[0].task, count)
    if together is None:
        return False
    end_s = decision.now_s + together.duration_s
    return all(  # decodes of all members may queue for one device
        p.is_background or end_s + p.lead_s + count * p.tail_s <= p.deadline_s for p in batch
    )


def _worth_while(decision: Round, first: StageTask, count: int) -> Estimate | None:
    """Return what a batch takes, or None if its last member saves nothing or memory lacks."""
    alone, before, together = (
        decision.cost.estimate(first.stage, first.request, batch=size)
        for size in (1, count - 1, count)
    )
    if together.duration_s - before.duration_s > WORTH_WHILE * alone.duration_s:
        return None
    weights = decision.board.view.weight_bytes[first.stage]
    fits = weights + together.activation_bytes <= decision.board.layout.least_capacity_bytes
    return together if fits else None


def _together(decision: Round, launch: Assignment, riders: Sequence[StageTask]) -> Assignment:
    """Return a launch with its riders, which nobody holds back any more."""
    riding = {task.id for task in riders}
    decision.held = [held for held in decision.held if held.task.id not in riding]
    why = f"{launch.why}; {1 + len(riders)} {launch.task.stage.kind.value}s share it"
    shared = decision.assignment(launch.task, launch.team, why, tuple(riders))
    end_s = decision.now_s + shared.expected_s
    decision.taken_until_s.update(dict.fromkeys(launch.team, end_s))
    return msgspec.structs.replace(shared, then=launch.then)
