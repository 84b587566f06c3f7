"""Encode and decode teams: Gamma_E and Gamma_C of the paper, one device each.

Encodes with a pool run together; without one an encode begins its request and is started like a
diffuse (`starts`). A decode goes to its pool of auxiliaries where there is one, and
spills onto a primary device when the pool is behind; without a pool it stays where its latent is.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from engine.types import DeviceId, RunningView, StageKey, StageKind, StageTask
from schedulers.dispatch.prospects import sibling
from schedulers.dispatch.round import Round


def place_encodes(decision: Round, tasks: Sequence[StageTask]) -> None:
    """Batch the ready encodes of each model onto idle devices: its encode pool if it has one.

    `tasks` come in order of urgency. A task that failed in a batch runs alone.
    """
    waiting = list(tasks)
    while waiting:
        first = waiting[0]
        device = _encoder(decision, first)
        if device is not None:
            alike = [t for t in waiting if t.stage == first.stage and not t.alone]
            same = [first] if first.alone else alike[: decision.knobs.batch]
            why = "encode pool" if len(same) == 1 else f"encode pool: {len(same)} together"
            decision.launch(first, (device,), why, tuple(t for t in same if t is not first))
        else:
            same = [task for task in waiting if task.stage == first.stage]
            for task in same:
                decision.hold(task, f"waits for a device to encode {first.stage}")
        done = {id(task) for task in same}
        waiting = [task for task in waiting if id(task) not in done]


def _encoder(decision: Round, task: StageTask) -> DeviceId | None:
    stage = task.stage
    pool = decision.board.idle_in_pool(stage)
    if pool:
        return decision.board.pick(stage, pool, 1, avoid=task.failed_on)[0]
    return None if decision.board.layout.pools.get(stage) else _single(decision, task)


def place_decodes(decision: Round, tasks: Sequence[StageTask]) -> None:
    """Give each ready decode a device, most urgent first, and note what the pools' waits are."""
    queues: dict[StageKey, PoolQueue] = {}
    for task in tasks:
        queue = queues.setdefault(task.stage, PoolQueue(decision, task.stage))
        pool = decision.board.idle_in_pool(task.stage)
        if pool:
            near = _at_home(decision, task, pool)
            device = decision.board.pick(task.stage, pool, 1, near, task.failed_on)[0]
            decision.launch(task, (device,), f"decode pool: {device} is idle")
            queue.occupy(device, decision.decode_s(task))
            continue
        spare = _spill(decision, task, queue)
        if spare is None:
            wait_s = queue.join(decision.decode_s(task))
            decision.hold(task, f"waits about {wait_s:.1f} s for the decode pool")
        else:
            where = "where its latent is" if spare in task.came_from else "on a primary device"
            decision.launch(task, (spare,), f"decode {where}")
    for stage, pool_of in decision.board.layout.pools.items():
        if pool_of:
            queue = queues.get(stage) or PoolQueue(decision, stage)
            decision.pool_wait_s[stage] = queue.wait_s


def _at_home(decision: Round, task: StageTask, pool: Sequence[DeviceId]) -> tuple[DeviceId, ...]:
    """Return those of some devices that a task's input reaches sooner than the others."""
    home, node_of = decision.home(task), decision.board.layout.node_of
    return tuple(d for d in pool if home is not None and node_of[d] == home)


def _spill(decision: Round, task: StageTask, queue: PoolQueue) -> DeviceId | None:
    """Return an idle primary for a decode that has no pool, or whose pool is behind."""
    if queue.exists:
        knobs = decision.knobs
        patience_s = knobs.spill_wait * decision.decode_s(task)
        if not knobs.spill or queue.wait_s <= patience_s:
            return None
    return _single(decision, task)


def _single(decision: Round, task: StageTask) -> DeviceId | None:
    """Return one idle device: one near the task's input, else on the node with the fewest idle.

    Of several nodes that have as few, the one where the input lies, if that is nearer.
    """
    board = decision.board
    rooms = decision.rooms(task.stage, task, 1)
    if not rooms:
        return None
    close = [
        d for d in task.came_from
        if d in board.idle and d in rooms.get(board.idle[d].info.node, ())
        and d not in task.failed_on
    ]  # fmt: skip
    if close:
        return min(close)
    free = [node for node in rooms if node not in decision.holds] or list(rooms)
    home = decision.home(task)
    node = min(free, key=lambda n: (len(rooms[n]), n != home, n))
    return board.pick(task.stage, rooms[node], 1, avoid=task.failed_on)[0]


def place_previews(decision: Round, tasks: Sequence[StageTask]) -> None:
    """Decode previews on devices that nothing else wants: best where the stage is, else in free memory.

    None is begun that would still run when the first diffuse of its model is expected to end: a
    preview delays no decode, as far as the cost model can tell.
    """
    for task in tasks:
        device = _spare_for(decision, task)
        diffuse = sibling(task.stage, StageKind.DIFFUSE)
        running = (r for r in decision.board.diffusing if r.assignment.task.stage == diffuse)
        ends_s = (_ends_s(seen) for seen in running)
        if device is None:
            decision.hold(task, "waits for an idle device that has the decoder, or room for it")
        elif decision.now_s + decision.decode_s(task) > min(ends_s, default=float("inf")):
            decision.hold(task, "would be in the way of a decode that comes soon")
        else:
            decision.launch(task, (device,), f"preview: {device} is idle")


def _spare_for(decision: Round, task: StageTask) -> DeviceId | None:
    needed, stage = decision.needed_bytes(task.stage, task, 1), task.stage
    able = (
        (stage not in seen.resident, device)
        for device, seen in decision.board.idle.items()
        if (seen.capacity_bytes if stage in seen.resident else seen.free_bytes) >= needed
    )
    return min(able, default=(True, None))[1]


def _ends_s(seen: RunningView) -> float:
    """Return when a diffuse will end at its own pace: guesses of a new class are too rough here."""
    task = seen.assignment.task
    done = seen.step - task.steps_done
    if not done:
        return seen.ends_s
    pace_s = (seen.step_at_s - seen.started_s) / done
    return seen.step_at_s + pace_s * (task.request.steps - seen.step)


class PoolQueue:
    """When the auxiliaries of a decode stage become free, for decodes served one after another."""

    def __init__(self, decision: Round, stage: StageKey) -> None:
        """Read the pool's expected ends."""
        self._now_s = now_s = decision.now_s
        devices = decision.board.devices
        pool = decision.board.layout.pools.get(stage, ())
        self._free_s = [max(now_s, devices[d].busy_until_s or now_s) for d in pool]
        heapq.heapify(self._free_s)

    @property
    def exists(self) -> bool:
        """Whether the stage has a pool at all."""
        return bool(self._free_s)

    @property
    def wait_s(self) -> float:
        """Seconds until the first auxiliary is free for one more decode."""
        return self._free_s[0] - self._now_s if self._free_s else 0.0

    def join(self, decode_s: float) -> float:
        """Queue a decode; return what it waits."""
        if not self._free_s:
            return 0.0
        free_s = heapq.heappop(self._free_s)
        heapq.heappush(self._free_s, free_s + decode_s)
        return free_s - self._now_s

    def occupy(self, _device: DeviceId, decode_s: float) -> None:
        """Note that an idle auxiliary has taken a decode."""
        self.join(decode_s)
