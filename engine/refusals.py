"""Stages that devices could not load, so that nobody tries all the time, nor gives up for good.

What failed is not tried before a pause that doubles with every failure. A launch tries all the
same, unless workers have died of it: then its requests fail until the pause is over.
"""

from __future__ import annotations

from engine.types import DeviceId, StageKey

DEATHS_ALLOWED = 3  # of a worker while it loads one stage; then the stage is to blame
FIRST_S, LONGEST_S = 30.0, 1800.0
AFTER_DEATHS_S = 300.0  # a worker that dies loses everything else that it held
_MOST_DOUBLINGS = 10  # beyond the longest pause; a float has room for a thousand


class _Record:
    """What is held against one stage on one device."""

    __slots__ = ("deaths", "error", "failures", "until_s")

    def __init__(self) -> None:
        self.error: str | None = None
        self.failures = self.deaths = 0
        self.until_s = 0.0

    def pause(self, now_s: float, first_s: float, times: int) -> None:
        self.until_s = now_s + min(LONGEST_S, first_s * 2 ** min(times - 1, _MOST_DOUBLINGS))


class Refusals:
    """What went wrong with loads since they last succeeded, per device and stage."""

    def __init__(self) -> None:
        """Begin with nothing wrong."""
        self._records: dict[tuple[DeviceId, StageKey], _Record] = {}

    def failed(self, device: DeviceId, stage: StageKey, error: str, now_s: float) -> None:
        """Note that a live worker could not load a stage."""
        record = self._records.setdefault((device, stage), _Record())
        record.error, record.failures = error, record.failures + 1
        record.pause(now_s, FIRST_S, record.failures)

    def died(self, device: DeviceId, stage: StageKey, now_s: float) -> None:
        """Note that a worker died while it loaded a stage."""
        record = self._records.setdefault((device, stage), _Record())
        record.deaths += 1
        if record.deaths >= DEATHS_ALLOWED:
            record.pause(now_s, AFTER_DEATHS_S, 1 + record.deaths - DEATHS_ALLOWED)

    def loaded(self, device: DeviceId, stage: StageKey) -> None:
        """Forget what went wrong before a load that succeeded."""
        self._records.pop((device, stage), None)

    def restarted(self, device: DeviceId) -> None:
        """Forgive a device's errors, since its worker is a new one; deaths are remembered."""
        for (where, _stage), record in self._records.items():
            if where == device:
                record.error, record.failures = None, 0

    def clear(self) -> None:
        """Forget everything."""
        self._records.clear()

    def is_dangerous(self, device: DeviceId, stage: StageKey) -> bool:
        """Whether a worker died while it loaded a stage, since that last succeeded there."""
        record = self._records.get((device, stage))
        return record is not None and record.deaths > 0

    def deadly(self, device: DeviceId, stage: StageKey, now_s: float) -> str | None:
        """Return why a stage is not even tried now."""
        record = self._records.get((device, stage))
        if record is None or record.deaths < DEATHS_ALLOWED or now_s >= record.until_s:
            return None
        return (
            f"The worker of {device} died {record.deaths} times while it loaded {stage}; it is "
            f"tried again in {record.until_s - now_s:.0f} s."
        )

    def why(self, device: DeviceId, stage: StageKey, now_s: float) -> str | None:
        """Return why a stage should not be loaded before it is needed; None if it may be."""
        record = self._records.get((device, stage))
        if record is None or now_s >= record.until_s:
            return None
        return self.deadly(device, stage, now_s) or record.error

    def next_try_s(self, now_s: float) -> float | None:
        """Return when the first pause ends; None if there is none."""
        pauses = (record.until_s for record in self._records.values() if record.until_s > now_s)
        return min(pauses, default=None)

    def pauses(self, device: DeviceId, now_s: float) -> bool:
        """Whether some stage is to be tried again on a device."""
        return any(
            where == device and record.until_s > now_s
            for (where, _stage), record in self._records.items()
        )
