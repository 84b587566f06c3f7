"""Encode and decode on one device each, as every stage-level baseline does it.

Which devices are auxiliaries is the placement's matter. A stage that has some runs there and waits
for them, whatever else is idle; a stage that has none runs on one device of those that also
diffuse: a decode where its latent is, encodes on the fullest node.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.types import DeviceId, StageKey, StageKind, StageTask
from schedulers.baselines.orders import Order
from schedulers.dispatch.auxiliary import PoolQueue
from schedulers.dispatch.round import Round


def place_auxiliaries(decision: Round, tasks: Sequence[StageTask], order: Order) -> list[StageTask]:
    """Place decodes, then encodes, each in order; return the diffuses in order.

    The round then knows how long a decode would wait for its pool.
    """
    ordered = sorted(tasks, key=lambda task: order(decision, task))
    of = {kind: [t for t in ordered if t.stage.kind is kind] for kind in StageKind}
    place_decodes(decision, of[StageKind.DECODE])
    place_encodes(decision, of[StageKind.ENCODE])
    return of[StageKind.DIFFUSE]


def place_decodes(decision: Round, tasks: Sequence[StageTask]) -> None:
    """Place decodes in the order given, and note what the pools' waits are."""
    queues = {
        stage: PoolQueue(decision, stage)
        for stage in decision.board.layout.pools
        if stage.kind is StageKind.DECODE
    }
    for task in tasks:
        device = _device(decision, task.stage, task.came_from)
        if device is None:
            decision.hold(task, f"waits for an idle device that holds {task.stage}")
        else:
            decision.launch(task, (device,), f"decodes on {device}")
        if task.stage in queues:
            queues[task.stage].join(decision.decode_s(task))
    decision.pool_wait_s = {stage: queue.wait_s for stage, queue in queues.items()}


def place_encodes(decision: Round, tasks: Sequence[StageTask]) -> None:
    """Batch the ready encodes of each model; a task that failed in a batch runs alone."""
    waiting = list(tasks)
    while waiting:
        first = waiting[0]
        device = _device(decision, first.stage)
        if device is None:
            batch = [task for task in waiting if task.stage == first.stage]
            for task in batch:
                decision.hold(task, f"waits for an idle device that holds {task.stage}")
        else:
            batch = _batch(waiting, decision.knobs.batch)
            decision.launch(first, (device,), f"encodes on {device}", tuple(batch[1:]))
        done = {task.id for task in batch}
        waiting = [task for task in waiting if task.id not in done]


def _batch(waiting: Sequence[StageTask], most: int) -> list[StageTask]:
    """Return what runs together with the first of `waiting`."""
    first = waiting[0]
    if first.attempt > 1:
        return [first]
    return [t for t in waiting if t.stage == first.stage and t.attempt == 1][:most]


def _device(decision: Round, stage: StageKey, near: Sequence[DeviceId] = ()) -> DeviceId | None:
    """Return one idle device for an encode or a decode, or None."""
    board = decision.board
    if board.layout.pools.get(stage):
        pool = board.idle_in_pool(stage)
        return min(pool, key=lambda d: (stage not in board.idle[d].resident, d), default=None)
    rooms = board.rooms(stage)
    if not rooms:
        return None
    homes = board.layout.homes[stage]
    close = [device for device in near if device in board.idle and device in homes]
    if close:
        return min(close)
    node = min(rooms, key=lambda node: (len(rooms[node]), node))
    return board.choose(stage, node, 1)[0]
