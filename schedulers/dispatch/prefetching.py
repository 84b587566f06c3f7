"""Prefetch: weights that a busy device should hold are loaded beside what it runs.

An idle device loads what placement wants without being asked; this is for those that are not idle,
so that the next task finds its stage there. A stage takes free memory; one that a task waits for may
also replace stages that placement does not want there. One stage per device and decision.
"""

from __future__ import annotations

from engine.types import DeviceId, DeviceView, Prefetch, StageKey, StageKind
from schedulers.dispatch.round import Round

_PIPELINE_ORDER = tuple(StageKind)


def prefetch(decision: Round) -> None:
    """Ask for the first missing stage that fits beside what each busy device runs."""
    if not decision.knobs.prefetch:
        return
    lacking = [
        device
        for device in decision.board.view.devices
        if device.busy_until_s is not None and not device.desired <= device.resident
    ]
    if lacking:
        waiting = {held.task.stage for held in decision.held if not held.impossible}
        in_use = _in_use(decision)
        for device in lacking:
            stage = _first_that_fits(decision, device, waiting, in_use.get(device.info.id))
            if stage is not None:
                decision.prefetches.append(Prefetch(device.info.id, stage))


def _in_use(decision: Round) -> dict[DeviceId, StageKey]:
    """Return the stage that each busy device runs."""
    launches = (running.assignment for running in decision.board.view.running)
    return {device: launch.task.stage for launch in launches for device in launch.team}


def _first_that_fits(
    decision: Round, device: DeviceView, waiting: set[StageKey], in_use: StageKey | None
) -> StageKey | None:
    """Return a missing stage to load, those that tasks wait for first."""
    weights = decision.board.view.weight_bytes
    unwanted = device.resident - device.desired - {in_use}
    freeable = device.free_bytes + sum(weights[stage] for stage in unwanted)
    fitting = [
        stage
        for stage in device.desired - device.resident
        if weights[stage] <= (freeable if stage in waiting else device.free_bytes)
    ]
    return min(
        fitting,
        key=lambda s: (s not in waiting, _PIPELINE_ORDER.index(s.kind), s.model),
        default=None,
    )
