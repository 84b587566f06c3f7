"""Stages that devices could not load, so that nobody tries for ever."""

from __future__ import annotations

from engine.types import DeviceId, StageKey

DEATHS_ALLOWED = 3  # of a worker while it loads one stage; then the stage is to blame


class Refusals:
    """What went wrong with loads, per device and stage."""

    def __init__(self) -> None:
        """Begin with nothing wrong."""
        self._errors: dict[tuple[DeviceId, StageKey], str] = {}
        self._deaths: dict[tuple[DeviceId, StageKey], int] = {}

    def failed(self, device: DeviceId, stage: StageKey, error: str) -> None:
        """Note that a live worker could not load a stage."""
        self._errors[device, stage] = error

    def died(self, device: DeviceId, stage: StageKey) -> None:
        """Note that a worker died while it loaded a stage."""
        self._deaths[device, stage] = self._deaths.get((device, stage), 0) + 1

    def loaded(self, device: DeviceId, stage: StageKey) -> None:
        """Forget what went wrong before a load that succeeded."""
        self._errors.pop((device, stage), None)
        self._deaths.pop((device, stage), None)

    def restarted(self, device: DeviceId) -> None:
        """Forgive a device's errors, since its worker is a new one; deaths are remembered."""
        self._errors = {key: why for key, why in self._errors.items() if key[0] != device}

    def clear(self) -> None:
        """Forget everything."""
        self._errors.clear()
        self._deaths.clear()

    def is_dangerous(self, device: DeviceId, stage: StageKey) -> bool:
        """Whether a worker died while it loaded a stage, since that last succeeded there."""
        return (device, stage) in self._deaths

    def deadly(self, device: DeviceId, stage: StageKey) -> str | None:
        """Return why a stage is not even tried any more."""
        deaths = self._deaths.get((device, stage), 0)
        if deaths < DEATHS_ALLOWED:
            return None
        return f"The worker of {device} died {deaths} times while it loaded {stage}."

    def why(self, device: DeviceId, stage: StageKey) -> str | None:
        """Return why a stage should not be loaded before it is needed; None if it may be."""
        return self.deadly(device, stage) or self._errors.get((device, stage))
