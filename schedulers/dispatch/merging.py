"""Merging: stages of a request that would run on one device anyway become one launch.

The paper's Merging Execute. Only where all of them are resident and wanted there, and where nothing
is given up: the next stage has no pool of its own, and no idle device would make a diffuse wider
or share out a decode.
"""

from __future__ import annotations

import msgspec

from engine.types import Assignment, DeviceView, Leg, StageKind
from schedulers.dispatch.decoding import is_worth_sharing
from schedulers.dispatch.prospects import sibling
from schedulers.dispatch.round import Round

_PIPELINE = tuple(StageKind)


def merge(decision: Round) -> None:
    """Let every launch on one device go on with what would follow there."""
    if decision.knobs.merge:
        decision.launches = [_merged(decision, launch) for launch in decision.launches]


def _merged(decision: Round, launch: Assignment) -> Assignment:
    if launch.degree > 1 or launch.riders:
        return launch
    device, legs = decision.board.devices[launch.team[0]], list[Leg]()
    for kind in _PIPELINE[_PIPELINE.index(launch.task.stage.kind) + 1 :]:
        if not _stays(decision, launch, device, kind):
            break
        stage = sibling(launch.task.stage, kind)
        estimate = decision.cost.estimate(stage, launch.task.request)
        legs.append(Leg(stage, estimate.duration_s, estimate.activation_bytes))
    merged = msgspec.structs.replace(launch, then=tuple(legs))
    weights = sum(decision.board.view.weight_bytes[stage] for stage in merged.stages)
    fits = weights + merged.peak_activation_bytes <= device.capacity_bytes
    return merged if legs and fits else launch


def _stays(decision: Round, launch: Assignment, device: DeviceView, kind: StageKind) -> bool:
    """Whether the stage of `kind` would run on the same device, and on no other beside it."""
    stage, layout = sibling(launch.task.stage, kind), decision.board.layout
    if stage not in device.resident or stage not in device.desired or layout.pools.get(stage):
        return False
    if kind is not StageKind.DIFFUSE:
        return not is_worth_sharing(decision, device.info.id, stage, launch.task.request)
    wider = any(home in decision.board.idle for home in layout.homes.get(stage, ()))
    return not wider or decision.curve_of(launch.task).degrees == (1,)
