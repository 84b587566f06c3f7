"""When a job will be finished, from the cost model and what is before it. Pure.

The work before a job is spread evenly over the devices that live. That is what a scheduler that
wastes nothing would do, so the middle is optimistic under load; the range says how much to trust it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from gateway.jobs.entry import Backlog

_MARGIN: Final = 1.5  # measured durations stay within this of what the cost model has learnt


class Prediction(msgspec.Struct, frozen=True):
    """When a job is expected to finish, in Unix seconds: alone, after what is before it, at worst."""

    earliest_s: float
    expected_s: float
    latest_s: float


def predict(backlog: Backlog, *, rest_s: float, devices: int, now_s: float) -> Prediction:
    """Return when a job that still takes `rest_s` seconds alone will be finished."""
    wait_s = backlog.work_s / max(1, devices)
    return Prediction(now_s + rest_s, now_s + wait_s + rest_s, now_s + _MARGIN * (wait_s + rest_s))
