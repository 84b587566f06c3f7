"""Which devices of a node hold which weights, and who reads from them: copies from peers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from engine.types import DeviceId, StageKey


class Lending:
    """Which devices hold which stages, and who reads from them now."""

    def __init__(self) -> None:
        """Begin with no stage anywhere."""
        self._holders: dict[StageKey, list[DeviceId]] = {}
        self._read: dict[tuple[DeviceId, StageKey], asyncio.Event] = {}

    def came(self, device: DeviceId, stage: StageKey) -> None:
        """Note that a device holds a stage."""
        holders = self._holders.setdefault(stage, [])
        if device not in holders:
            holders.append(device)

    def went(self, device: DeviceId, stage: StageKey) -> None:
        """Note that a device holds a stage no more, or not for long: nobody else may read there."""
        if device in self._holders.get(stage, ()):
            self._holders[stage].remove(device)

    def died(self, device: DeviceId) -> None:
        """Note that a device holds nothing any more."""
        for stage in self._holders:
            self.went(device, stage)

    def lender(self, device: DeviceId, stage: StageKey) -> DeviceId | None:
        """Return another device that holds a stage and that nobody reads from, if there is one.

        Further loads come from the host copy meanwhile: two links are faster than one that is shared.
        """
        others = (other for other in self._holders.get(stage, ()) if other != device)
        return next((other for other in others if (other, stage) not in self._read), None)

    @contextmanager
    def lent(self, device: DeviceId, stage: StageKey) -> Iterator[None]:
        """Keep a device's copy in place while it is read."""
        read = self._read[device, stage] = asyncio.Event()
        try:
            yield
        finally:
            del self._read[device, stage]
            read.set()

    async def returned(self, device: DeviceId, stage: StageKey) -> None:
        """Wait until nobody reads a device's copy any more."""
        if (read := self._read.get((device, stage))) is not None:
            await read.wait()
