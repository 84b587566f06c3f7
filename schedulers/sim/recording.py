"""Collects from events what pictures are drawn of: rectangles of devices, latencies of requests.

A picture of a long simulation needs memory for all its runs; nothing else keeps them.
"""

from __future__ import annotations

import math
from array import array

import msgspec

from engine.types import DeviceId, RequestId
from schedulers.sim.events import (
    ArriveEvent,
    ClusterDevice,
    ClusterEvent,
    DeviceLostEvent,
    DeviceReadyEvent,
    FinishEvent,
    LoadEvent,
    RejectEvent,
    RunEvent,
    RunOutcome,
    SimEvent,
    SwitchEvent,
    end_of,
)

FAILED, LOAD, LOST = "failed run", "load", "device lost"


class Bars(msgspec.Struct, frozen=True):
    """Rectangles of one kind: row of the device, start and end in virtual seconds."""

    rows: array[float] = msgspec.field(default_factory=lambda: array("d"))
    starts: array[float] = msgspec.field(default_factory=lambda: array("d"))
    ends: array[float] = msgspec.field(default_factory=lambda: array("d"))

    def add(self, row: int, start: float, end: float) -> None:
        """Append one rectangle."""
        self.rows.append(row)
        self.starts.append(start)
        self.ends.append(end)


class Latencies:
    """Arrival, latency (infinite if there was no output) and allowance of every request."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.arrivals, self.latencies, self.allowed = array("d"), array("d"), array("d")
        self._waiting: dict[RequestId, int] = {}

    def add(self, event: SimEvent) -> None:
        """Take one event."""
        match event:
            case ArriveEvent():
                self._waiting[event.request] = len(self.arrivals)
                self.arrivals.append(event.t)
                self.latencies.append(math.inf)
                self.allowed.append(event.deadline - event.t)
            case FinishEvent():
                if (index := self._waiting.pop(event.request, None)) is not None:
                    self.latencies[index] = event.t - self.arrivals[index]
            case RejectEvent():
                self._waiting.pop(event.request, None)
            case _:
                pass


class Timeline:
    """What every device did; rows are in the order of the cluster's nodes."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.devices: tuple[ClusterDevice, ...] = ()
        self.bars: dict[str, Bars] = {}
        self.switches: list[float] = []
        self.end_s = 0.0
        self._row: dict[DeviceId, int] = {}
        self._lost_at: dict[DeviceId, float] = {}

    def add(self, event: SimEvent) -> None:
        """Take one event."""
        self.end_s = max(self.end_s, end_of(event))
        match event:
            case ClusterEvent():
                self.devices = event.devices
                self._row = {device.id: row for row, device in enumerate(event.devices)}
            case RunEvent():
                kind = FAILED if event.outcome is RunOutcome.FAILED else event.stage.value
                for device in event.devices:
                    self._bar(kind, device, event.start, event.end)
            case LoadEvent():
                self._bar(LOAD, event.device, event.start, event.end)
            case SwitchEvent():
                self.switches.append(event.t)
            case DeviceLostEvent():
                self._lost_at[event.device] = event.t
            case DeviceReadyEvent():
                self._bar(LOST, event.device, self._lost_at.pop(event.device, event.t), event.t)
            case _:
                pass

    def close(self) -> None:
        """Let what is still lost be so to the end."""
        for device, at in self._lost_at.items():
            self._bar(LOST, device, at, self.end_s)
        self._lost_at.clear()

    def _bar(self, kind: str, device: DeviceId, start: float, end: float) -> None:
        if device in self._row:
            self.bars.setdefault(kind, Bars()).add(self._row[device], start, end)
