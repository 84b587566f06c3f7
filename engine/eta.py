"""When a request will be finished, and with how many denoise steps it would be on time. Pure.

Admission asks here, in the gateway and in the simulator alike. The work before a request is spread
evenly over the devices that live. That is what a scheduler that wastes nothing would do, so the
middle is optimistic under load; the range says how much to trust it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from engine.types import Degraded

_MARGIN: Final = 1.5  # measured durations stay within this of what the cost model has learnt


class Prediction(msgspec.Struct, frozen=True):
    """When a request should finish, in Unix seconds: alone, after what is before it, at worst."""

    earliest_s: float
    expected_s: float
    latest_s: float


def predict(work_s: float, *, rest_s: float, devices: int, now_s: float) -> Prediction:
    """Return when a request that still takes `rest_s` seconds alone will be finished.

    `work_s` is the device-seconds of work before it.
    """
    wait_s = work_s / max(1, devices)
    return Prediction(now_s + rest_s, now_s + wait_s + rest_s, now_s + _MARGIN * (wait_s + rest_s))


def degrade(
    wished: int, least: int, finish_s: Callable[[int], float], *, deadline_s: float
) -> Degraded | None:
    """Return the most denoise steps with which a late request would be on time.

    None if it needs none of that, because it is on time as it is, or if not even `least` steps
    would help. `finish_s` gives the predicted finish by steps, and grows with them.
    """
    late_s = finish_s(wished) - deadline_s
    if late_s <= 0 or finish_s(least) > deadline_s:
        return None
    timely, late = least, wished
    while late - timely > 1:
        middle = (timely + late) // 2
        if finish_s(middle) <= deadline_s:
            timely = middle
        else:
            late = middle
    return Degraded(wished_steps=wished, least_steps=least, used_steps=timely, late_s=late_s)
