"""What a start is worth: the objective of the dispatcher's integer program, term by term.

    on time:  W (1 + u) (1 - c) - delay (1 + u) wait_s / t*
    late:     min(900, 100 (1 + lateness / t*))
    both:     - transfer_s - mu k T_D

    u = clip(1 - slack / t*, 0, 1)                    urgency
    c = clip(slack after relief / t*, 0, patience)    how sure it is that waiting does no harm

W (1 + u), the late value with its ageing and the mu term are the design notes' repair of
TridentServe's published reward (flat 1000 on time; late 100 (1 + lateness / t*), growing up to
1000). c is ours: a start is worth what would be lost by waiting, so that a request that can be on
time later does not take the place of one that cannot. Relief is when a third of the busy devices
will be free. t* is the request's reference latency; slack and lateness are at its fastest degree
from now on, so that a slow degree is never worth more. On-time is a constant of an option.
"""

from __future__ import annotations

import msgspec

from schedulers.dispatch.prospects import Prospect


class Prices(msgspec.Struct, frozen=True, kw_only=True):
    """Weights of the terms.

    Attributes:
        on_time: of a request that meets its deadline.
        most_late: what ageing ends at; below `on_time`, though late ones never compete with it.
        late: of a request that has just become late.
        patience: most of its value that a start can lose because waiting does no harm.
        wait: lost when an on-time start is put off by one reference latency.
        gpu_second: mu; breaks ties towards fewer device-seconds.
        transfer_second: of hand-off and weight loads.
    """

    on_time: float = 1000.0
    most_late: float = 900.0
    late: float = 100.0
    patience: float = 0.9
    wait: float = 200.0
    gpu_second: float = 0.01
    transfer_second: float = 5.0


class Worth:
    """The value of one request's options."""

    __slots__ = ("_base", "_now_s", "_prices", "_prospect", "_wait_price")

    def __init__(
        self,
        prospect: Prospect,
        *,
        reference_s: float,
        now_s: float,
        relief_s: float,
        prices: Prices,
    ) -> None:
        """Compute what all its options share."""
        self._prospect, self._prices, self._now_s = prospect, prices, now_s
        reference_s = max(reference_s, 1e-9)
        slack_s = prospect.deadline_s - now_s - prospect.best_s
        if prospect.is_background:
            self._base = min(prices.most_late, prices.late * (1.0 - slack_s / reference_s))
            self._wait_price = 0.0
        else:
            urgency = min(1.0, max(0.0, 1.0 - slack_s / reference_s))
            spare_s = slack_s - (relief_s - now_s)
            safe = min(prices.patience, max(0.0, spare_s / reference_s))
            self._base = prices.on_time * (1.0 + urgency) * (1.0 - safe)
            self._wait_price = prices.wait * (1.0 + urgency) / reference_s

    def of(self, degree: int, *, start_s: float, transfer_s: float) -> float:
        """Return the value of a start at a degree; on-time ones and background ones only."""
        device_s = degree * self._prospect.run_s(degree)
        return (
            self._base
            - self._wait_price * (start_s - self._now_s)
            - self._prices.transfer_second * transfer_s
            - self._prices.gpu_second * device_s
        )
