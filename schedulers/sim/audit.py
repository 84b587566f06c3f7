"""An auditor that believes nothing but the event file.

It shares no code with the engine's ledgers: it replays every device and every request from the
events alone and says, one sentence each, where they contradict themselves or the rules. It needs
memory for all events of the history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from itertools import product
from typing import NamedTuple

from engine.types import DeviceId, ModelId, Purpose, RequestId, StageKind
from schedulers.sim.events import (
    ArriveEvent,
    ClusterDevice,
    ClusterEvent,
    DecideEvent,
    DegradeEvent,
    DeviceLostEvent,
    DeviceReadyEvent,
    EvictEvent,
    FinishEvent,
    LoadEvent,
    PlaceEvent,
    RejectEvent,
    RunEvent,
    RunOutcome,
    SimEvent,
    SwitchEvent,
)

TOLERANCE_S = 1e-6  # of sums of floats
MOST_PROBLEMS = 1000

_Held = tuple[ModelId, StageKind]
_Say = Callable[[str], None]
_DeviceEvent = RunEvent | LoadEvent | EvictEvent | DeviceLostEvent | DeviceReadyEvent


def audit(events: Iterable[SimEvent]) -> list[str]:
    """Return what is wrong with a history, at most `MOST_PROBLEMS` sentences; empty if nothing.

    Checked: a device runs one launch at a time (loads may go on beside it), only while it lives; weights
    and activations fit its memory; the stages of a run are resident on its whole team, which is
    inside one node; a request goes through encode, all its steps once, and decode, in this order
    (after a failed run from where that had saved, if it had); it ends exactly once, and `on_time`
    agrees with its deadline; it is degraded once at most, to no less than it allows, and only if it
    would be late.
    """
    return _Audit(events).problems


class _Phase(IntEnum):
    """What comes first of all that happens on a device at one moment."""

    RELEASE = 0
    LOST = 1
    READY = 2
    DROP = 3
    DROPPED = 4
    LOAD = 5
    RUN = 6


class _Op(NamedTuple):
    """A change on one device; a run's model is known from its requests."""

    at: float
    phase: _Phase
    event: _DeviceEvent
    held: _Held | None = None


class _Audit:
    """Sorts events to the devices and requests that they concern, then replays each."""

    def __init__(self, events: Iterable[SimEvent]) -> None:
        self.problems: list[str] = []
        self._devices: dict[DeviceId, _Device] = {}
        self._requests: dict[RequestId, _Request] = {}
        self._lost: list[DeviceLostEvent] = []
        self._runs: list[RunEvent] = []
        for number, event in enumerate(events):
            if (number == 0) != isinstance(event, ClusterEvent):
                self._say("The cluster must be the first event and the only one of its kind.")
            self._sort(event)
        for run in self._runs:
            self._sort_run(run)
        for device in self._devices.values():
            device.replay()
        for request in self._requests.values():
            request.replay(self._lost)

    def _say(self, problem: str) -> None:
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(problem)

    def _sort(self, event: SimEvent) -> None:
        match event:
            case ClusterEvent():
                if len({device.id for device in event.devices}) < len(event.devices):
                    self._say("Two devices of the cluster have one id.")
                self._devices |= {d.id: _Device(d, self._say) for d in event.devices}
            case ArriveEvent():
                if event.request in self._requests:
                    self._say(f"Request {event.request} arrives twice.")
                self._requests[event.request] = _Request(event, self._say)
            case DegradeEvent():
                self._sort_degraded(event)
            case FinishEvent() | RejectEvent():
                if (request := self._request(event.request, "ends")) is not None:
                    request.ends.append(event)
            case RunEvent():
                self._runs.append(event)  # it may name a request whose line is still to come
            case PlaceEvent() | SwitchEvent() | DecideEvent():
                pass  # what follows from them are loads, evictions and runs
            case _:
                self._sort_change(event)

    def _sort_degraded(self, event: DegradeEvent) -> None:
        if (request := self._request(event.request, "is degraded")) is None:
            return
        if request.degraded or not event.least <= event.steps < event.wished or event.late_s <= 0:
            self._say(
                f"Request {event.request} is degraded from {event.wished} to {event.steps} steps, "
                f"though it allows {event.least} and would be {event.late_s:.6g} s late, or twice."
            )
        request.degraded = True

    def _sort_change(
        self, event: LoadEvent | EvictEvent | DeviceLostEvent | DeviceReadyEvent
    ) -> None:
        if isinstance(event, DeviceLostEvent):
            self._lost.append(event)
        if isinstance(event, DeviceReadyEvent) and event.memory_bytes:
            self._join(event)
            return
        if isinstance(event, LoadEvent | EvictEvent) and event.end < event.start:
            self._say(f"{_capital(_name(event))} ends before it starts.")
        if (device := self._device(event.device)) is not None:
            device.take(event)

    def _join(self, event: DeviceReadyEvent) -> None:
        """Take in a device that was not up when the history began."""
        if event.device in self._devices:
            self._say(f"Device {event.device} comes for the first time, but it is there.")
        device = ClusterDevice(event.device, event.node, event.memory_bytes)
        self._devices[event.device] = _Device(device, self._say, since_s=event.t)

    def _sort_run(self, run: RunEvent) -> None:
        name = _capital(_name(run))
        if run.end < run.start:
            self._say(f"{name} ends before it starts.")
        if run.degree != len(run.devices) or len(set(run.devices)) != len(run.devices):
            self._say(f"{name} has degree {run.degree} on devices {', '.join(run.devices)}.")
        if not run.requests or len(set(run.requests)) != len(run.requests):
            self._say(f"{name} must be of one or more different requests.")
        requests = [r for i in run.requests if (r := self._request(i, "runs")) is not None]
        models = {request.arrival.model for request in requests}
        if len(models) > 1:
            self._say(f"{name} mixes the models {', '.join(sorted(models))}.")
        team = [d for i in run.devices if (d := self._device(i)) is not None]
        if len({device.node for device in team}) > 1:
            self._say(f"{name} has a team on several nodes.")
        for request in requests if run.purpose is Purpose.MAIN else ():
            request.runs.append(run)
        for device, model in product(team, list(models)[:1]):
            device.take(run, (model, run.stage))

    def _request(self, request: RequestId, verb: str) -> _Request | None:
        if request not in self._requests:
            self._say(f"Request {request} {verb} but never arrives.")
        return self._requests.get(request)

    def _device(self, device: DeviceId) -> _Device | None:
        if device not in self._devices:
            self._say(f"Device {device} is not in the cluster.")
        return self._devices.get(device)


class _Device:
    """Replays what happened on one device."""

    def __init__(self, device: ClusterDevice, say: _Say, since_s: float = 0.0) -> None:
        self.node, self._since_s = device.node, since_s
        self._id, self._capacity = device.id, device.memory_bytes
        self._weights: dict[_Held, int] = {(s.model, s.stage): s.bytes for s in device.stages}
        self._usable = set(self._weights)
        self._active: list[_Op] = []
        self._alive = True
        self._ops: list[_Op] = []
        self._tell = say

    def take(self, event: _DeviceEvent, held: _Held | None = None) -> None:
        match event:
            case RunEvent():
                self._span(_Phase.RUN, _Phase.RELEASE, event, held)
            case LoadEvent():
                self._span(_Phase.LOAD, _Phase.RELEASE, event, (event.model, event.stage))
            case EvictEvent():
                self._span(_Phase.DROP, _Phase.DROPPED, event, (event.model, event.stage))
            case DeviceLostEvent():
                self._ops.append(_Op(event.t, _Phase.LOST, event))
            case DeviceReadyEvent():
                self._ops.append(_Op(event.t, _Phase.READY, event))

    def _span(
        self,
        begin: _Phase,
        end: _Phase,
        event: RunEvent | LoadEvent | EvictEvent,
        held: _Held | None,
    ) -> None:
        self._ops.append(_Op(event.start, begin, event, held))
        if _lasts(event) or end is _Phase.DROPPED:
            self._ops.append(_Op(max(event.start, event.end - TOLERANCE_S), end, event, held))

    def replay(self) -> None:
        self._check_memory(0.0)
        for op in sorted(self._ops, key=lambda op: (op.at, op.phase)):
            self._apply(op)

    def _apply(self, op: _Op) -> None:
        match op.phase:
            case _Phase.RELEASE:
                self._release(op)
            case _Phase.LOST:
                self._lose(op)
            case _Phase.READY:
                if self._alive:
                    self._say(op, "comes back but was never lost")
                self._alive = True
            case _Phase.DROP:
                self._drop(op)
            case _Phase.DROPPED if op.held is not None:
                self._weights.pop(op.held, None)
            case _:
                self._begin(op)

    def _begin(self, op: _Op) -> None:
        if not self._alive or op.at < self._since_s - TOLERANCE_S:
            self._say(op, f"is lost when {_name(op.event)} begins")
        for other in self._active:
            if isinstance(op.event, RunEvent) and isinstance(other.event, RunEvent):
                both = f"{_name(other.event)} and {_name(op.event)}"
                self._say(op, f"does two things at once: {both}")
        if op.held is not None and isinstance(op.event, LoadEvent):
            if op.held in self._weights:
                self._say(op, f"already holds what {_name(op.event)} brings")
            self._weights[op.held] = op.event.bytes
        elif op.held not in self._usable:
            self._say(op, f"does not hold the stage of {_name(op.event)}")
        self._active.append(op)
        self._check_memory(op.at)
        if not _lasts(op.event):
            self._release(op)

    def _release(self, op: _Op) -> None:
        began = [other for other in self._active if other.event is op.event]
        self._active = [other for other in self._active if other.event is not op.event]
        if began and isinstance(op.event, LoadEvent) and op.held is not None:
            self._usable.add(op.held)

    def _drop(self, op: _Op) -> None:
        if op.held not in self._usable:
            self._say(op, f"does not hold what {_name(op.event)} drops")
            return
        if any(other.held == op.held for other in self._active):
            self._say(op, f"runs the stage that {_name(op.event)} drops")
        if isinstance(op.event, EvictEvent) and op.event.bytes != self._weights[op.held]:
            wrong = f"holds {self._weights[op.held]} bytes where {_name(op.event)} drops"
            self._say(op, f"{wrong} {op.event.bytes}")
        self._usable.discard(op.held)

    def _lose(self, op: _Op) -> None:
        if not self._alive:
            self._say(op, "is lost twice")
        for other in self._active:
            self._say(op, f"is lost before {_name(other.event)} ends")
        self._alive = False
        self._active.clear()
        self._weights.clear()
        self._usable.clear()

    def _check_memory(self, at: float) -> None:
        runs = (op.event for op in self._active if isinstance(op.event, RunEvent))
        needed = sum(self._weights.values()) + sum(run.activation_bytes for run in runs)
        if needed > self._capacity:
            message = f"Device {self._id} at {at:.6g} s: {needed} bytes do not fit"
            self._tell(f"{message} its {self._capacity}.")

    def _say(self, op: _Op, problem: str) -> None:
        self._tell(f"Device {self._id} at {op.at:.6g} s {problem}.")


class _Request:
    """Replays what happened to one request."""

    def __init__(self, arrival: ArriveEvent, say: _Say) -> None:
        self.arrival = arrival
        self.runs: list[RunEvent] = []
        self.ends: list[FinishEvent | RejectEvent] = []
        self.degraded = False
        self._tell = say
        self._ready_s = arrival.t  # when the last run was over
        self._encoded, self._decoded = arrival.encoded, False
        self._steps = 0
        self._saved: range = range(0)  # where a run that failed may be taken up
        self._holders: dict[DeviceId, float] = {}  # who made results, and when

    def replay(self, losses: Sequence[DeviceLostEvent]) -> None:
        for run in sorted(self.runs, key=lambda run: (run.start, run.end)):
            if self._is_past(run, losses):
                continue
            self._forget_what_was_lost(run, losses)
            self._check(run)
            self._ready_s = max(self._ready_s, run.end)
            if run.outcome is not RunOutcome.FAILED:
                self._advance(run)
            elif run.stage is StageKind.DIFFUSE:
                first = run.step_to if len(run.requests) == 1 else run.step_from
                self._saved = range(first, run.step_to + 1)
        if len(self.ends) != 1:
            self._say(f"ends {len(self.ends)} times instead of once")
        for end in self.ends:
            self._check_end(end)

    def _forget_what_was_lost(self, run: RunEvent, losses: Sequence[DeviceLostEvent]) -> None:
        """Work may be done again only after a device that did it was lost."""
        if self._decoded or not self._lost_before(run, losses):
            return
        if run.stage is StageKind.ENCODE:
            self._encoded = False  # what a diffuse has saved may lie elsewhere, and count still
        elif run.stage is StageKind.DIFFUSE:
            self._steps = min(self._steps, run.step_from)

    def _lost_before(self, run: RunEvent, losses: Sequence[DeviceLostEvent]) -> bool:
        """Whether a device that made something of the request went before a run began."""
        made_s = self._holders
        return any(
            loss.device in made_s and made_s[loss.device] <= loss.t <= run.start + TOLERANCE_S
            for loss in losses
        )

    def _is_past(self, run: RunEvent, losses: Sequence[DeviceLostEvent]) -> bool:
        """Whether an encode was made again for other outputs of the request: this one is diffused.

        They have lost a latent, and the embeddings that all shared were freed before that.
        """
        again = run.stage is StageKind.ENCODE and len(run.requests) > 1 and self._encoded
        is_over = self._steps == self.arrival.steps
        return again and is_over and any(loss.t <= run.start + TOLERANCE_S for loss in losses)

    def _check(self, run: RunEvent) -> None:
        if run.start < self._ready_s - TOLERANCE_S:
            since = "it arrived" if self._ready_s == self.arrival.t else "its last run was over"
            self._say(f"has {_name(run)} before {since} at {self._ready_s:.6g} s")
        if self.ends and run.start > self.ends[0].t + TOLERANCE_S:
            self._say(f"has {_name(run)} after its end at {self.ends[0].t:.6g} s")
        if self.arrival.resumed:
            return  # what came before is in another engine's file
        match run.stage:
            case StageKind.ENCODE:
                self._expect(run, not self._encoded, "although it is encoded")
            case StageKind.DIFFUSE:
                self._expect(run, self._encoded, "before it is encoded")
                self._expect(run, not self._decoded, "although it is decoded")
                self._check_steps(run)
            case StageKind.DECODE:
                steps = self.arrival.steps
                self._expect(run, self._steps == steps, f"after {self._steps} of {steps} steps")
                self._expect(run, not self._decoded, "although it is decoded")

    def _check_steps(self, run: RunEvent) -> None:
        if run.step_from != self._steps and run.step_from not in self._saved:
            self._say(f"has {_name(run)} from step {run.step_from} after {self._steps} steps")
        if not run.step_from <= run.step_to <= self.arrival.steps:
            steps = f"from step {run.step_from} to {run.step_to} of {self.arrival.steps}"
            self._say(f"has {_name(run)} {steps}")

    def _advance(self, run: RunEvent) -> None:
        self._holders |= dict.fromkeys(run.devices, run.end)
        self._encoded |= run.stage is StageKind.ENCODE
        self._decoded |= run.stage is StageKind.DECODE
        if run.stage is StageKind.DIFFUSE:
            self._steps, self._saved = run.step_to, range(0)

    def _check_end(self, end: FinishEvent | RejectEvent) -> None:
        if end.t < self.arrival.t - TOLERANCE_S:
            self._say("ends before it arrives")
        if isinstance(end, RejectEvent):
            return
        if not (self._decoded or self.arrival.resumed):
            self._say("finishes without being decoded")
        if end.t < self._ready_s - TOLERANCE_S:
            self._say(f"finishes at {end.t:.6g} s, before its last run ends")
        margin_s = self.arrival.deadline - end.t
        if abs(margin_s) > TOLERANCE_S and end.on_time != (margin_s > 0):
            due = f"at {end.t:.6g} s with deadline {self.arrival.deadline:.6g} s"
            self._say(f"finishes {due} but says on_time {end.on_time}")

    def _expect(self, run: RunEvent, holds: bool, otherwise: str) -> None:  # noqa: FBT001 - reads as a sentence
        if not holds:
            self._say(f"has {_name(run)} {otherwise}")

    def _say(self, problem: str) -> None:
        self._tell(f"Request {self.arrival.request} {problem}.")


def _lasts(event: _DeviceEvent) -> bool:
    """Return whether an event takes time enough to be in another's way."""
    if isinstance(event, DeviceLostEvent | DeviceReadyEvent):
        return False
    return event.end - event.start > TOLERANCE_S


def _name(event: _DeviceEvent) -> str:
    match event:
        case RunEvent():
            what = f"a {event.stage} of {', '.join(event.requests)}"
        case LoadEvent():
            what = f"the load of {event.model}/{event.stage}"
        case EvictEvent():
            what = f"the eviction of {event.model}/{event.stage}"
        case _:
            return f"the event at {event.t:.6g} s"
    return f"{what} ({event.start:.6g} to {event.end:.6g} s)"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
