"""The online monitor: requests and stage spans as rates and service times for the planner.

The span hooks only append one tuple to a bounded deque; all folding happens in `snapshot`, on the
planner's own tick. It sees every span of the engine's scope, whatever the exporter samples.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import msgspec
from opentelemetry.sdk.trace import SpanProcessor

from observability.asking import RequestCount
from observability.semconv import (
    ATTR_MODEL,
    ATTR_QUEUE_WAIT_S,
    ATTR_SHAPE,
    ATTR_STAGE,
    ATTR_STEPS,
    ENGINE_SCOPE,
)
from observability.snapshot import MonitorSnapshot, RequestClass, StageClass, StageWindow

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, Span

SNAPSHOT_INTERVAL_S = 1.0
_FAST, _SLOW = 1 / 8, 1 / 64
"""Weights of one execution in the two averages whose ratio is the drift."""
_LEAST_FOR_DRIFT = 16
_NS_PER_S = 1e9
_LEAST_COVERED_S = 1e-3


class _Event(msgspec.Struct, frozen=True):
    """One span start (`service_s` is None) or end."""

    key: StageClass
    at_s: float
    service_s: float | None = None
    queue_wait_s: float = 0.0
    failed: bool = False
    steps: int = 0


class StageMonitor(SpanProcessor):
    """A span processor that answers for the last `window_s` seconds.

    Memory is bounded by `max_events`: when more happens in a window, its rates are of a shorter time.
    What was never folded is lost, and counted in the snapshot.
    """

    def __init__(self, *, window_s: float = 60.0, max_events: int = 100_000) -> None:
        """Begin with an empty window."""
        self._window_s = window_s
        self._incoming: deque[_Event] = deque(maxlen=max_events)
        self._window: deque[_Event] = deque(maxlen=max_events)
        self._tallies: dict[StageClass, _Tally] = {}
        self._in_flight: dict[StageClass, int] = {}
        self._requests = RequestCount(window_s=window_s, most=max_events)
        self._next_snapshot_s = 0.0
        self._full_since_s: float | None = None  # the oldest event kept, once some had to go
        self._appended = 0
        self._folded = 0

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Count an execution as in flight."""
        del parent_context
        if (key := _stage_class(span)) is not None and span.start_time is not None:
            self._append(_Event(key, span.start_time / _NS_PER_S, steps=_steps_of(span)))

    def on_end(self, span: ReadableSpan) -> None:
        """Note how long an execution took."""
        key = _stage_class(span)
        if key is None or span.start_time is None or span.end_time is None:
            return
        attributes = span.attributes or {}
        wait = attributes.get(ATTR_QUEUE_WAIT_S, 0.0)
        self._append(
            _Event(
                key,
                span.end_time / _NS_PER_S,
                service_s=(span.end_time - span.start_time) / _NS_PER_S,
                queue_wait_s=float(wait) if isinstance(wait, int | float) else 0.0,
                failed=not span.status.is_ok,
                steps=_steps_of(span),
            )
        )

    def requested(self, model: str, shape: str, *, outputs: int, steps: int, at_s: float) -> None:
        """Count a request that has arrived: `outputs` of `steps` denoise steps each."""
        self._requests.add(RequestClass(model, shape), outputs=outputs, steps=steps, at_s=at_s)

    def _append(self, event: _Event) -> None:
        self._appended += 1
        self._incoming.append(event)

    @property
    def is_blind(self) -> bool:
        """Whether no span was ever seen."""
        return self._appended == 0

    @property
    def dropped_events(self) -> int:
        """Starts and ends that were lost because nobody folded them in time."""
        return self._appended - self._folded - len(self._incoming)

    def fresh_snapshot(self, now_s: float) -> MonitorSnapshot | None:
        """Return a snapshot, or None if the last one is younger than `SNAPSHOT_INTERVAL_S`."""
        if now_s < self._next_snapshot_s:
            return None
        self._next_snapshot_s = now_s + SNAPSHOT_INTERVAL_S
        return self.snapshot(now_s)

    def snapshot(self, now_s: float) -> MonitorSnapshot:
        """Fold what happened since the last call and describe the window that ends now.

        Costs as much as there are new and old events, not as there are in the window.
        """
        self._fold()
        while self._window and self._window[0].at_s < now_s - self._window_s:
            self._leave(self._window.popleft())
            self._full_since_s = None
        covered_s = self._covered_s(now_s)
        seen = {**dict.fromkeys(self._in_flight, _NOTHING), **self._tallies}
        return MonitorSnapshot(
            taken_s=now_s,
            window_s=self._window_s,
            blind=self.is_blind,
            dropped_events=self.dropped_events,
            classes={key: self._describe(key, tally, covered_s) for key, tally in seen.items()},
            asked=self._requests.until(now_s),
        )

    def _covered_s(self, now_s: float) -> float:
        if self._full_since_s is None:
            return self._window_s
        return min(self._window_s, max(now_s - self._full_since_s, _LEAST_COVERED_S))

    def _fold(self) -> None:
        while self._incoming:
            event = self._incoming.popleft()
            self._folded += 1
            delta = 1 if event.service_s is None else -1
            count = self._in_flight.get(event.key, 0) + delta
            self._in_flight[event.key] = max(0, count)
            if count <= 0:
                del self._in_flight[event.key]
            if len(self._window) == self._window.maxlen:
                self._leave(self._window.popleft())
                self._full_since_s = self._window[0].at_s if self._window else event.at_s
            self._window.append(event)
            tally = self._tallies.setdefault(event.key, _Tally())
            tally.count(event, 1)
            if event.service_s is not None and not event.failed:
                tally.pace(event.service_s / max(1, event.steps))

    def _leave(self, event: _Event) -> None:
        """Take an event out of its class; an empty class is forgotten, and its rounding with it."""
        tally = self._tallies[event.key]
        tally.count(event, -1)
        if tally.events == 0:
            del self._tallies[event.key]

    def _describe(self, key: StageClass, tally: _Tally, covered_s: float) -> StageWindow:
        done = tally.finished - tally.failed
        return StageWindow(
            started=tally.started,
            finished=tally.finished,
            failed=tally.failed,
            in_flight=self._in_flight.get(key, 0),
            arrivals_per_s=tally.started / covered_s,
            mean_steps=tally.steps / tally.started if tally.started else 0.0,
            mean_service_s=max(0.0, tally.service_s) / done if done else 0.0,
            mean_queue_wait_s=max(0.0, tally.wait_s) / tally.finished if tally.finished else 0.0,
            drift=tally.drift,
        )


class _Tally:
    """Sums over the events of one class in the window."""

    __slots__ = (
        *("events", "failed", "finished", "service_s", "started", "steps", "wait_s"),
        *("_fast_s", "_paces", "_slow_s"),
    )

    def __init__(self) -> None:
        self.events = self.started = self.finished = self.failed = self.steps = 0
        self.service_s = self.wait_s = 0.0
        self._paces, self._fast_s, self._slow_s = 0, 0.0, 0.0

    @property
    def drift(self) -> float:
        """Ratio of the pace of the last executions to that of many; 1 while there are few."""
        if self._paces < _LEAST_FOR_DRIFT or self._slow_s <= 0:
            return 1.0
        return self._fast_s / self._slow_s

    def pace(self, pace_s: float) -> None:
        """Take an execution into both averages; the first ones count alike."""
        self._paces += 1
        self._fast_s += max(_FAST, 1 / self._paces) * (pace_s - self._fast_s)
        self._slow_s += max(_SLOW, 1 / self._paces) * (pace_s - self._slow_s)

    def count(self, event: _Event, sign: int) -> None:
        """Add an event, or take it out with `sign` -1."""
        self.events += sign
        if event.service_s is None:
            self.started += sign
            self.steps += sign * event.steps
            return
        self.finished += sign
        self.wait_s += sign * event.queue_wait_s
        if event.failed:
            self.failed += sign
        else:
            self.service_s += sign * event.service_s


_NOTHING = _Tally()


def _steps_of(span: ReadableSpan) -> int:
    steps = (span.attributes or {}).get(ATTR_STEPS, 0)
    return steps if isinstance(steps, int) else 0


def _stage_class(span: ReadableSpan) -> StageClass | None:
    scope = span.instrumentation_scope
    if scope is None or scope.name != ENGINE_SCOPE:
        return None
    attributes = span.attributes or {}
    return StageClass(
        model=str(attributes.get(ATTR_MODEL, "")),
        stage=str(attributes.get(ATTR_STAGE, "")),
        shape=str(attributes.get(ATTR_SHAPE, "")),
    )
