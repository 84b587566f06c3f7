"""What the monitor has seen in a window of time: frozen values for planners."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class StageClass(msgspec.Struct, frozen=True, order=True):
    """The monitor's key: model, stage kind and shape, all as bounded strings."""

    model: str
    stage: str
    shape: str


class StageWindow(msgspec.Struct, frozen=True, kw_only=True):
    """One stage class over the window.

    `mean_steps` are the denoise steps of the requests whose stages started. Times are mean seconds
    of executions that ended in it; service times leave out those that failed or were cancelled.
    `drift` is the seconds per step of the last eight executions or so over those of the last 64 or
    so: above 1, the devices have become slower for this class.
    """

    started: int
    finished: int
    failed: int
    in_flight: int
    arrivals_per_s: float
    mean_steps: float
    mean_service_s: float
    mean_queue_wait_s: float
    drift: float = 1.0


class RequestClass(msgspec.Struct, frozen=True, order=True):
    """What requests are counted by: model and shape, as strings."""

    model: str
    shape: str


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for in the window: outputs of one class, and their mean denoise steps."""

    outputs: int
    mean_steps: float


class MonitorSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All stage classes and all requests seen in the window that ends at `taken_s`.

    `blind` is true if the monitor is attached to no recording tracer and so knows no stage.
    """

    taken_s: float
    window_s: float
    blind: bool
    dropped_events: int
    classes: Mapping[StageClass, StageWindow]
    asked: Mapping[RequestClass, Asked]
