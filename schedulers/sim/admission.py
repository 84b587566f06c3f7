"""What a gateway does before an engine hears of a request: lower its steps if it would be late.

The decision and the prediction are the gateway's own (`engine.eta`); so is what counts as before a
request: the work that is left of all that run or have an earlier deadline. A request counts as
running here once it has done a denoise step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from engine.eta import degrade, predict

if TYPE_CHECKING:
    from engine.types import GenerationRequest, RequestId
    from schedulers.cost import CostModel


class Admission:
    """Knows the requests that were admitted and are not over.

    Args:
        cost: what the policy knows of durations.
        progress: the share of its steps that a request has done.
        devices: how many are alive.
    """

    def __init__(
        self,
        cost: CostModel,
        *,
        progress: Callable[[RequestId], float],
        devices: Callable[[], int],
    ) -> None:
        """Begin with none."""
        self._cost, self._progress, self._devices = cost, progress, devices
        self._open: dict[RequestId, tuple[float, float]] = {}  # deadline and device-seconds

    def admit(self, request: GenerationRequest, least: int, now_s: float) -> GenerationRequest:
        """Return a request as it is admitted, with at least `least` steps."""
        before_s = self._work_before_s(request.deadline_s)

        def finish_s(steps: int) -> float:
            alone_s = self._cost.latency_s(_with_steps(request, steps))
            found = predict(before_s, rest_s=alone_s, devices=self._devices(), now_s=now_s)
            return found.expected_s

        how = degrade(request.steps, least, finish_s, deadline_s=request.deadline_s)
        if how is not None:
            request = msgspec.structs.replace(_with_steps(request, how.used_steps), degraded=how)
        self._open[request.id] = request.deadline_s, self._cost.work_s(request)
        return request

    def ended(self, request: RequestId) -> None:
        """Count a request no longer."""
        self._open.pop(request, None)

    def _work_before_s(self, deadline_s: float) -> float:
        work_s = 0.0
        for request, (other_s, needs_s) in self._open.items():
            done = self._progress(request)
            if done or other_s <= deadline_s:
                work_s += needs_s * (1 - done)
        return work_s


def _with_steps(request: GenerationRequest, steps: int) -> GenerationRequest:
    return msgspec.structs.replace(request, steps=steps)
