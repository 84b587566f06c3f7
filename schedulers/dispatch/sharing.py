"""Step batches: waiting requests that are alike ride along with one that has just been started.

One call of the denoiser then serves all of them at every step. Off unless the knob `step_batch` says
otherwise, because results differ in their last bits. Only where it pays: the batch takes less time
than its members one after another would, and nobody's deadline is given up for it. Encodes share a
launch as well where their diffuses could, so that those come to be ready together.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from engine.types import Assignment, Purpose, StageKind, StageTask
from schedulers.dispatch.prospects import Prospect
from schedulers.dispatch.round import Round

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
                decision.launches[index] = _together(decision, launch, batch)


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
    request, stage, count = batch[0].task.request, batch[0].stage, len(batch)
    alone, before, together = (
        decision.cost.estimate(stage, request, batch=size) for size in (1, count - 1, count)
    )
    if together.duration_s - before.duration_s > WORTH_WHILE * alone.duration_s:
        return False
    end_s = decision.now_s + together.duration_s
    return all(  # decodes of all members may queue for one device
        p.is_background or end_s + p.lead_s + count * p.tail_s <= p.deadline_s for p in batch
    ) and _fits(decision, batch[0], together.activation_bytes)


def _fits(decision: Round, leader: Prospect, activation_bytes: int) -> bool:
    """Whether every device could hold the batch beside the weights."""
    weights = decision.board.view.weight_bytes[leader.stage]
    return weights + activation_bytes <= decision.board.layout.least_capacity_bytes


def _together(decision: Round, launch: Assignment, batch: Sequence[Prospect]) -> Assignment:
    """Return a launch with its riders, which nobody holds back any more."""
    riders = tuple(prospect.task for prospect in batch[1:])
    riding = {task.id for task in riders}
    decision.held = [held for held in decision.held if held.task.id not in riding]
    what = "encodes" if launch.task.stage.kind is StageKind.ENCODE else "diffuses"
    why = f"{launch.why}; {len(batch)} {what} share it"
    shared = decision.assignment(launch.task, launch.team, why, riders)
    end_s = decision.now_s + shared.expected_s
    decision.taken_until_s.update(dict.fromkeys(launch.team, end_s))
    return msgspec.structs.replace(shared, then=launch.then)
