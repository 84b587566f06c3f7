"""Leftover devices for films that are decoded frame by frame: the frames are shared out.

Only exact sharing is offered. The tiles of a picture are not, because a tiled decode is another
picture than a whole one.
"""

from __future__ import annotations

from engine.types import Assignment, DeviceId, Purpose, StageKind
from schedulers.dispatch.round import Round


def widen_decodes(decision: Round) -> None:
    """Let the decodes of this decision take idle devices that hold the stage and save enough time."""
    if decision.knobs.decode_degree > 1:
        for index, launch in enumerate(decision.launches):
            wide = _wider(decision, launch)
            if launch.expected_s - wide.expected_s >= decision.knobs.scale_up_gain_s:
                decision.board.take(d for d in wide.team if d not in launch.team)
                decision.launches[index] = wide


def _wider(decision: Round, launch: Assignment) -> Assignment:
    """Return the launch on as many devices of its node as there are, in powers of two."""
    task = launch.task
    is_decode = task.stage.kind is StageKind.DECODE and task.purpose is Purpose.MAIN
    if not is_decode or launch.riders or not decision.cost.decodes_frames(task.stage.model):
        return launch
    room = _room(decision, launch)
    degree, most = 1, min(decision.knobs.decode_degree, 1 + len(room), task.request.shape.frames)
    while 2 * degree <= most:
        degree *= 2
    team = tuple(sorted((*launch.team, *room[: degree - 1])))
    return decision.assignment(task, team, f"{launch.why}, frames on {degree} devices")


def _room(decision: Round, launch: Assignment) -> list[DeviceId]:
    """Return idle devices of the launch's node that hold the stage, on unheld nodes only."""
    node = decision.board.layout.node_of[launch.team[0]]
    stage = launch.task.stage
    return sorted(
        device
        for device, seen in decision.board.idle.items()
        if seen.info.node == node and node not in decision.holds and stage in seen.resident
    )
