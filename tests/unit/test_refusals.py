"""Pauses between tries to load what a device could not load."""

from __future__ import annotations

from engine.refusals import AFTER_DEATHS_S, FIRST_S, LONGEST_S, Refusals
from engine.types import DeviceId, ModelId, StageKey, StageKind

A, STAGE = DeviceId("a"), StageKey(ModelId("m"), StageKind.ENCODE)
MANY = 1500  # more doublings than a float has room for


def test_the_pause_doubles_up_to_a_bound_however_often_a_load_fails() -> None:
    refusals, pauses = Refusals(), list[float | None]()
    for _ in range(MANY):
        refusals.failed(A, STAGE, "broken weights", 0.0)
        pauses.append(refusals.next_try_s(0.0))
    assert pauses[:3] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S]
    assert pauses[-1] == LONGEST_S


def test_so_it_does_however_often_workers_die_of_a_load() -> None:
    refusals, pauses = Refusals(), list[float | None]()
    for _ in range(MANY):
        refusals.died(A, STAGE, 0.0)
        pauses.append(refusals.next_try_s(0.0))
    assert pauses[:4] == [None, None, AFTER_DEATHS_S, 2 * AFTER_DEATHS_S]
    assert pauses[-1] == LONGEST_S
