"""Whether a better placement is worth the switch: hysteresis and what the weight loads cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import msgspec

from engine.types import DeviceId, StageKey
from schedulers.planner.capacity import Balance
from schedulers.planner.knobs import PlannerKnobs
from schedulers.planner.ports import StageCost
from schedulers.planner.replicas import Role
from schedulers.planner.roster import Slot

EQUAL = 0.002  # relative difference of the objective that means nothing
_TINY = 1e-9


class Loads(msgspec.Struct, frozen=True):
    """Seconds of weight loads: of all devices, and of the node that takes longest."""

    total_s: float
    longest_s: float


class Verdict(msgspec.Struct, frozen=True):
    """Whether to switch, and why, as a sentence."""

    switch: bool
    reason: str


def extra_loads(
    new: Mapping[DeviceId, Role],
    old: Mapping[DeviceId, Role],
    slots: Sequence[Slot],
    cost: StageCost,
) -> Loads:
    """Estimate the loads of `new` beyond those that `old` would still need.

    Devices of one node load one after the other over its link; a stage that somebody on the node
    holds comes from there.
    """
    total = longest = 0.0
    for _, group in groupby(sorted(slots, key=lambda slot: slot.node), key=lambda slot: slot.node):
        node = list(group)
        peers = frozenset[StageKey]().union(*(slot.resident for slot in node))
        seconds = sum(
            max(0.0, _load_s(slot, new, peers, cost) - _load_s(slot, old, peers, cost))
            for slot in node
        )
        total, longest = total + seconds, max(longest, seconds)
    return Loads(total, longest)


def _load_s(
    slot: Slot, roles: Mapping[DeviceId, Role], peers: frozenset[StageKey], cost: StageCost
) -> float:
    missing = roles.get(slot.id, frozenset[StageKey]()) - slot.resident
    return sum(cost.load_s(stage, from_peer=stage in peers) for stage in sorted(missing))


def weigh(
    new: Balance,
    now: Balance,
    loads: Loads,
    *,
    devices: int,
    knobs: PlannerKnobs,
    requests: int = 0,
    mend: bool = False,
) -> Verdict:
    """Return whether what a switch gains over the horizon is worth what it loads.

    `requests` is how many the demand was estimated from; 0 if somebody knew it.
    With `mend`, whole blocks in place of broken ones are worth a cheap switch by themselves: the
    fluid model does not see how much harder it is to find a wide team among fewer. That is for
    times when devices came or went, as at the start, when their nodes become known one by one.
    """
    budget = devices * knobs.horizon_s
    cheap = loads.total_s <= knobs.cheap_load_share * budget
    whole = new.wide > now.wide and new.factor >= now.factor * (1.0 - EQUAL)
    if mend and cheap and whole:
        return Verdict(switch=True, reason="More devices lie in whole blocks.")
    if now.factor >= knobs.comfort:
        reason = f"The present placement sustains {now.factor:.2f} times the demand."
        return Verdict(switch=False, reason=reason)
    gain = new.factor / max(now.factor, _TINY) - 1.0
    doubt = knobs.doubt / requests**0.5 if requests else 0.0
    least = max(doubt, knobs.cheap_gain if cheap else knobs.min_gain)
    if gain < least:
        reason = f"A switch would gain {gain:.1%}, less than {least:.0%}."
        return Verdict(switch=False, reason=reason)
    saved_s = budget * (1.0 / max(now.factor, _TINY) - 1.0 / new.factor)
    if saved_s < loads.total_s:
        reason = f"Loads take {loads.total_s:.0f} device-seconds and would save {saved_s:.0f}."
        return Verdict(switch=False, reason=reason)
    return Verdict(switch=True, reason=f"The new placement sustains {gain:.1%} more.")
