"""What the planner decided and why: for logs and for whoever asks it to explain itself."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from engine.types import DeviceId
from schedulers.planner.demand import ClassDemand, Demand


class Trigger(StrEnum):
    """What made the planner think."""

    BOOTSTRAP = "bootstrap"
    DEVICES = "devices_changed"
    UNSERVED = "class_without_team"
    IMBALANCE = "stages_unbalanced"
    MIX = "mix_shifted"


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One deliberation.

    Attributes:
        at_s: when.
        trigger: what made the planner think.
        switched: whether a new placement was returned.
        reason: why it switched or held, as a sentence.
        version: of the placement in force after the decision.
        recipe: name of the proposal that came out best.
        sustains_now: multiple of the demand that the placement before sustains; 0 if it leaves a
            class without a team, None if there was none.
        sustains_new: the same of the proposal.
        ratios: capacity over demand by stage kind, of the placement before (of the new one if
            there was none).
        counts: devices per role of the proposal, roles written `model/stage+model/stage`.
        load_s: estimated device-seconds of weight loads to get there.
        demand: the demand that was planned for.
        swapped: devices of the placement in force whose stages evict each other.
        impossible: classes that no placement of these devices could serve.
    """

    at_s: float
    trigger: Trigger
    switched: bool
    reason: str
    version: int
    recipe: str
    sustains_now: float | None
    sustains_new: float
    ratios: Mapping[str, float]
    counts: Mapping[str, int]
    load_s: float
    demand: Demand
    swapped: tuple[DeviceId, ...] = ()
    impossible: tuple[ClassDemand, ...] = ()
