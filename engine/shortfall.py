"""What the placement wants on devices that lack it, and whether it may be loaded there now.

Looks at the cluster's ledgers and at what could not be loaded; moves nothing.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import TYPE_CHECKING

from engine.errors import StageFailedError
from engine.refusals import Refusals
from engine.types import DeviceId, StageKey

if TYPE_CHECKING:
    from engine.cluster import Cluster
    from engine.ports import Clock


class Shortfall:
    """Which devices are still to be filled under the current placement.

    Attributes:
        refusals: what could not be loaded.
    """

    def __init__(self, cluster: Cluster, clock: Clock) -> None:
        """Begin with no device filled."""
        self._cluster, self._clock = cluster, clock
        self.refusals = Refusals()
        self._filled: set[DeviceId] = set()

    def devices(self, arriving: Container[DeviceId]) -> tuple[DeviceId, ...]:
        """Return live devices that lack stages which would fit and where none is `arriving`.

        A device is filled once per placement; what is swapped out later comes back on demand.
        """
        memories, now_s = self._cluster.memories, self._clock.now()
        lacking = [d for d in memories if d not in self._filled and self.stages(d)]
        settled = [d for d in memories if d not in lacking and d not in arriving]
        self._filled |= {d for d in settled if not self.refusals.pauses(d, now_s)}
        return tuple(device for device in lacking if device not in arriving)

    def stages(self, device: DeviceId) -> frozenset[StageKey]:
        """Return desired stages that a device lacks, that fit and that may be loaded."""
        memory = self._cluster.memories.get(device)
        if memory is None:
            return frozenset()
        return frozenset(
            stage
            for stage in self._cluster.desired(device)
            if stage not in memory.weights
            and self.why_not(device, stage) is None
            and self._cluster.weight_bytes[stage] <= memory.free_bytes
        )

    def why_not(self, device: DeviceId, stage: StageKey) -> str | None:
        """Return why a stage should not be loaded before it is needed; None if it may be."""
        return self.refusals.why(device, stage, self._clock.now())

    def expect_loadable(self, device: DeviceId, stages: Iterable[StageKey]) -> None:
        """Raise `StageFailedError` if workers have died of one of these stages."""
        for stage in stages:
            if (why := self.refusals.deadly(device, stage, self._clock.now())) is not None:
                raise StageFailedError(why, retryable=False)

    def sooner(self, at_s: float | None) -> float | None:
        """Return `at_s`, or the moment before it at which a load may be tried again."""
        moments = [self.refusals.next_try_s(self._clock.now()), at_s]
        return min((moment for moment in moments if moment is not None), default=None)

    def restarted(self, device: DeviceId) -> None:
        """Forget what a device held before its worker was restarted."""
        self._filled.discard(device)
        self.refusals.restarted(device)

    def start_over(self) -> None:
        """Forget the placement before."""
        self._filled.clear()
        self.refusals.clear()

    def why_not_servable(self, stage: StageKey) -> tuple[str, ...]:
        """Return why no live device could run `stage` now; empty if one could."""
        if any(stage in memory.loaded for memory in self._cluster.memories.values()):
            return ()
        placed = self._cluster.placement.stages
        planned = [device for device, stages in placed.items() if stage in stages]
        live = [device for device in planned if device in self._cluster.memories]
        if not planned:
            return (f"{stage}: no device is planned to hold it.",)
        if not live:
            return (f"{stage}: no live device holds it; {', '.join(planned)} should and are down.",)
        refusals = [why for d in live if (why := self.why_not(d, stage)) is not None]
        if refusals:
            return (f"{stage}: {refusals[0]}",)
        if all(device in self._filled for device in live):
            return ()  # others fill the memory: it is loaded on demand
        return (f"{stage}: weights are being loaded on {', '.join(live)}.",)
