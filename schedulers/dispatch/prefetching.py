"""Prefetch: weights that a busy device should hold are loaded into its free memory meanwhile.

An idle device loads what placement wants without being asked; this is for those that are not idle,
so that the next task finds its stage there. One stage per device and decision.
"""

from __future__ import annotations

from engine.types import DeviceView, Prefetch, StageKey, StageKind
from schedulers.dispatch.round import Round

_PIPELINE_ORDER = tuple(StageKind)


def prefetch(decision: Round) -> None:
    """Ask for the first missing stage that fits beside what each busy device runs."""
    if not decision.knobs.prefetch:
        return
    for device in decision.board.view.devices:
        if device.busy_until_s is not None and not device.desired <= device.resident:
            stage = _first_that_fits(decision, device)
            if stage is not None:
                decision.prefetches.append(Prefetch(device.info.id, stage))


def _first_that_fits(decision: Round, device: DeviceView) -> StageKey | None:
    weights = decision.board.view.weight_bytes
    missing = device.desired - device.resident
    fitting = [stage for stage in missing if weights[stage] <= device.free_bytes]
    return min(fitting, key=lambda s: (_PIPELINE_ORDER.index(s.kind), s.model), default=None)
