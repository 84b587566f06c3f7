"""Fairness between tenants: who has used more than its share stands a little later in the queue.

A tenant's account is the device-seconds launched for it, divided by its weight, forgotten with a
half-life. Its requests are ordered as if their deadline were later by the seconds of the whole
cluster that it is ahead of the least served tenant: no tenant with work waiting can be pushed
back without bound, and one tenant alone is never pushed back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class Accounts:
    """Device-seconds per tenant, weighted and decaying."""

    def __init__(self, weights: Mapping[str, float], half_life_s: float) -> None:
        """Begin with empty accounts; a tenant that is not named has weight 1."""
        self._weights, self._half_life_s = weights, half_life_s
        self._used: dict[str, float] = {}
        self._at_s = 0.0

    def charge(self, tenant: str, device_s: float, now_s: float) -> None:
        """Book what was launched for a tenant."""
        self._decay(now_s)
        self._used[tenant] = self._used.get(tenant, 0.0) + device_s / self._weights.get(tenant, 1.0)

    def _decay(self, now_s: float) -> None:
        if now_s > self._at_s:
            factor = 0.5 ** ((now_s - self._at_s) / self._half_life_s)
            self._used = {t: used * factor for t, used in self._used.items() if used > 1e-6}  # noqa: PLR2004 - nothing
            self._at_s = now_s

    def delays_s(self, waiting: Iterable[str], devices: int, now_s: float) -> dict[str, float]:
        """Return for each waiting tenant how many seconds later its requests are ordered."""
        tenants = set(waiting)
        if len(tenants) <= 1:
            return dict.fromkeys(tenants, 0.0)
        self._decay(now_s)
        used = {tenant: self._used.get(tenant, 0.0) for tenant in tenants}
        least = min(used.values())
        return {tenant: (account - least) / max(1, devices) for tenant, account in used.items()}
