"""Leftover devices for decodes that come in parts: frames of a film, tiles of a large picture.

Only exact sharing is offered: what a decode's parts are, its model and size say (`engine.tiling`),
and the devices only share them out.
"""

from __future__ import annotations

from engine.types import (
    Assignment,
    DeviceId,
    GenerationRequest,
    Purpose,
    StageKey,
    StageKind,
)
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
    """Return the launch on as many devices of its node as make it shortest, in powers of two."""
    task = launch.task
    is_decode = task.stage.kind is StageKind.DECODE and task.purpose is Purpose.MAIN
    if not is_decode or launch.riders:
        return launch
    team = _team(decision, launch.team[0], task.stage, task.request)
    return decision.assignment(task, team, f"{launch.why}, parts on {len(team)} devices")


def is_worth_sharing(
    decision: Round, device: DeviceId, stage: StageKey, request: GenerationRequest
) -> bool:
    """Whether the idle devices would save enough of a decode that is to follow on a device."""
    if decision.knobs.decode_degree == 1:
        return False
    degree = len(_team(decision, device, stage, request))
    alone, shared = (decision.cost.estimate(stage, request, degree=k) for k in (1, degree))
    return alone.duration_s - shared.duration_s >= decision.knobs.scale_up_gain_s


def _team(
    decision: Round, device: DeviceId, stage: StageKey, request: GenerationRequest
) -> tuple[DeviceId, ...]:
    """Return a device with as many idle ones of its node as make a decode shortest."""
    parts = decision.cost.decode_parts(stage.model, request.shape)
    room = _room(decision, device, stage) if parts > 1 else []
    most = min(decision.knobs.decode_degree, 1 + len(room), parts)
    degree = min(
        (2**power for power in range(most.bit_length())),
        key=lambda k: decision.cost.estimate(stage, request, degree=k).duration_s,
    )
    return tuple(sorted((device, *room[: degree - 1])))


def _room(decision: Round, device: DeviceId, stage: StageKey) -> list[DeviceId]:
    """Return idle devices of a device's node that hold the stage, on unheld nodes only."""
    node = decision.board.layout.node_of[device]
    return sorted(
        idle
        for idle, seen in decision.board.idle.items()
        if seen.info.node == node and node not in decision.holds and stage in seen.resident
    )
