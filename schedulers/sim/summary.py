"""From a stream of events to the figures of a simulation, in memory of a few numbers a request.

A request that is rejected, or unfinished when the events end, counts as late, and its latency
runs to the end of the simulation or to its deadline, whichever is later: nobody gets better
percentiles by refusing work.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from math import ceil

import msgspec

from engine.types import DeviceId, RequestId, StageKind
from schedulers.policies import SwitchValue
from schedulers.sim.config import RunFacts
from schedulers.sim.events import (
    ArriveEvent,
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
    end_of,
)

STAGES = tuple(stage.value for stage in StageKind)
_MOST_REASONS = 32  # reasons may name requests: the summary stays bounded


class GroupSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of one class or tenant; seconds are None if there was none.

    `slo_attainment` counts what was on time with all the denoise steps that it asked for;
    `degraded` were admitted with fewer, and `degraded_on_time` of these ended on time.
    """

    requests: int
    finished: int
    rejected: int
    slo_attainment: float
    mean_s: float | None
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    degraded: int = 0
    degraded_on_time: int = 0

    @property
    def degraded_attainment(self) -> float:
        """Return the share that was on time with fewer steps than it asked for."""
        return self.degraded_on_time / self.requests if self.requests else 0.0


class RunIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Which simulation a summary is of."""

    policy: str
    profile: str
    models: tuple[str, ...]
    workload: str
    gpus: int
    seed: int
    slo_scale: float
    rate_scale: float
    noise: float
    stragglers: float
    failures: tuple[str, ...]
    dispatcher: str | None
    switches: Mapping[str, SwitchValue]
    versions: Mapping[str, str]
    degrade: bool = False
    min_steps_share: float | None = None


class Summary(GroupSummary, frozen=True, kw_only=True):
    """All figures of one simulation.

    Attributes:
        goodput_rps: requests on time, with all their steps, per second of the period in which requests arrive.
        gpu_utilisation: busy GPU-seconds over those of living GPUs until the last event, per
            stage; `total` is the sum over stages, `load` is time spent on loading weights.
        per_class: by model and shape, as `model HxWxF`.
        decision_ms_p99: real milliseconds of the policy on the machine that simulated.
    """

    simulated: bool = True
    policy: str
    profile: str
    models: tuple[str, ...]
    workload: str
    gpus: int
    nodes: int
    seed: int
    slo_scale: float
    rate_scale: float
    noise: float
    stragglers: float
    failures: tuple[str, ...]
    dispatcher: str | None
    policy_switches: Mapping[str, SwitchValue]
    goodput_rps: float
    gpu_utilisation: Mapping[str, float]
    per_class: Mapping[str, GroupSummary]
    per_tenant: Mapping[str, GroupSummary]
    reject_reasons: Mapping[str, int]
    decisions: int
    decision_ms_p50: float
    decision_ms_p99: float
    switches: int
    preemptions: int
    resizes: int
    failed_runs: int
    loads: int
    evictions: int
    devices_lost: int
    simulated_s: float
    wall_s: float
    versions: Mapping[str, str]
    degrade: bool = False
    min_steps_share: float | None = None


class _Group:
    """Latencies of what finished; arrival and deadline of what did not."""

    __slots__ = (
        "arrived", "degraded", "degraded_on_time", "due", "latencies", "on_time", "rejected",
    )  # fmt: skip

    def __init__(self) -> None:
        self.latencies, self.arrived, self.due = array("d"), array("d"), array("d")
        self.on_time = self.rejected = self.degraded = self.degraded_on_time = 0

    def finish(self, arrival: ArriveEvent, end_s: float, *, on_time: bool, degraded: bool) -> None:
        self.latencies.append(end_s - arrival.t)
        self.on_time += on_time and not degraded
        self.degraded_on_time += on_time and degraded

    def miss(self, arrival: ArriveEvent) -> None:
        self.arrived.append(arrival.t)
        self.due.append(arrival.deadline)

    def all_latencies(self, end_s: float) -> list[float]:
        missed = zip(self.arrived, self.due, strict=True)
        return sorted([*self.latencies, *(max(end_s, due) - at for at, due in missed)])

    def summary(self, end_s: float) -> GroupSummary:
        latencies = self.all_latencies(end_s)
        count = len(latencies)
        return GroupSummary(
            requests=count,
            finished=len(self.latencies),
            rejected=self.rejected,
            slo_attainment=self.on_time / count if count else 0.0,
            mean_s=sum(latencies) / count if count else None,
            p50_s=percentile(latencies, 0.50),
            p95_s=percentile(latencies, 0.95),
            p99_s=percentile(latencies, 0.99),
            degraded=self.degraded,
            degraded_on_time=self.degraded_on_time,
        )


class SummaryBuilder:
    """Takes events one at a time, in the order of their writing."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._waiting: dict[RequestId, ArriveEvent] = {}
        self._degraded: set[RequestId] = set()
        self._all = _Group()
        self._classes: dict[str, _Group] = {}
        self._tenants: dict[str, _Group] = {}
        self._busy_s = dict.fromkeys((*STAGES, "load"), 0.0)
        self._reasons: dict[str, int] = {}
        self._lost_at: dict[DeviceId, float] = {}
        self._down_s = 0.0
        self._devices = self._loads = self._evictions = self._lost = self._failed_runs = 0
        self._nodes: set[str] = set()
        self._first_s: float | None = None
        self._last_arrival_s = self._end_s = 0.0

    def add(self, event: SimEvent) -> None:  # noqa: C901, PLR0912 - one case per kind of event
        """Take one event."""
        self._end_s = max(self._end_s, end_of(event))
        match event:
            case ClusterEvent():
                self._devices = len(event.devices)
                self._nodes = {device.node for device in event.devices}
            case ArriveEvent():
                self._arrive(event)
            case RunEvent():
                self._busy_s[event.stage] += (event.end - event.start) * len(event.devices)
                self._failed_runs += event.outcome is RunOutcome.FAILED
            case LoadEvent():
                self._busy_s["load"] += event.end - event.start
                self._loads += 1
            case EvictEvent():
                self._evictions += 1
            case PlaceEvent() | SwitchEvent() | DecideEvent():
                pass  # counted by who decides
            case RejectEvent():
                self._reject(event)
            case DegradeEvent():
                self._degraded.add(event.request)
                for group, _arrival in self._groups_of(event.request):
                    group.degraded += 1
            case FinishEvent():
                degraded = event.request in self._degraded
                for group, arrival in self._groups_of(event.request):
                    group.finish(arrival, event.t, on_time=event.on_time, degraded=degraded)
                self._forget(event.request)
            case DeviceLostEvent():
                self._lost += 1
                self._lost_at[event.device] = event.t
            case DeviceReadyEvent(memory_bytes=0):
                self._down_s += event.t - self._lost_at.pop(event.device, event.t)
            case DeviceReadyEvent():
                self._devices += 1
                self._nodes.add(event.node)
                self._down_s += event.t

    def _arrive(self, event: ArriveEvent) -> None:
        self._waiting[event.request] = event
        self._first_s = event.t if self._first_s is None else min(self._first_s, event.t)
        self._last_arrival_s = max(self._last_arrival_s, event.t)

    def _reject(self, event: RejectEvent) -> None:
        for group, arrival in self._groups_of(event.request):
            group.miss(arrival)
            group.rejected += 1
        self._forget(event.request)
        known = event.reason in self._reasons or len(self._reasons) < _MOST_REASONS
        reason = event.reason if known else "other reasons"
        self._reasons[reason] = self._reasons.get(reason, 0) + 1

    def _forget(self, request: RequestId) -> None:
        self._waiting.pop(request, None)
        self._degraded.discard(request)

    def _groups_of(self, request: RequestId) -> list[tuple[_Group, ArriveEvent]]:
        arrival = self._waiting.get(request)
        if arrival is None:
            return []
        shape = f"{arrival.height}x{arrival.width}x{arrival.frames}"
        own = self._classes.setdefault(f"{arrival.model} {shape}", _Group())
        tenant = self._tenants.setdefault(arrival.tenant, _Group())
        return [(group, arrival) for group in (self._all, own, tenant)]

    def summary(self, identity: RunIdentity, facts: RunFacts) -> Summary:
        """Return the figures of all events so far; what still waits counts as missed."""
        for request in list(self._waiting):
            for group, arrival in self._groups_of(request):
                group.miss(arrival)
            del self._waiting[request]
        end_s = self._end_s
        whole = self._all.summary(end_s)
        return Summary(
            **msgspec.structs.asdict(whole),
            policy=identity.policy,
            profile=identity.profile,
            models=identity.models,
            workload=identity.workload,
            gpus=identity.gpus,
            nodes=len(self._nodes),
            seed=identity.seed,
            slo_scale=identity.slo_scale,
            rate_scale=identity.rate_scale,
            noise=identity.noise,
            stragglers=identity.stragglers,
            failures=identity.failures,
            dispatcher=identity.dispatcher,
            policy_switches=identity.switches,
            goodput_rps=whole.slo_attainment * self._arrival_rate(whole.requests),
            gpu_utilisation=self._utilisation(),
            per_class=_summaries(self._classes, end_s),
            per_tenant=_summaries(self._tenants, end_s),
            reject_reasons=dict(self._reasons),
            decisions=facts.decisions,
            decision_ms_p50=facts.decision_ms_p50,
            decision_ms_p99=facts.decision_ms_p99,
            switches=facts.switches_count,
            preemptions=facts.preemptions,
            resizes=facts.resizes,
            failed_runs=self._failed_runs,
            loads=self._loads,
            evictions=self._evictions,
            devices_lost=self._lost,
            simulated_s=facts.simulated_s,
            wall_s=facts.wall_s,
            versions=identity.versions,
            degrade=identity.degrade,
            min_steps_share=identity.min_steps_share,
        )

    def _arrival_rate(self, requests: int) -> float:
        """Return requests per second: n requests span n - 1 gaps."""
        span_s = self._last_arrival_s - (self._first_s or 0.0)
        return (requests - 1) / span_s if span_s > 0 else 0.0

    def _utilisation(self) -> dict[str, float]:
        down_s = self._down_s + sum(self._end_s - at for at in self._lost_at.values())
        living_s = self._devices * self._end_s - down_s
        shares = {
            part: busy_s / living_s if living_s > 0 else 0.0
            for part, busy_s in self._busy_s.items()
        }
        return {**shares, "total": sum(shares[stage] for stage in STAGES)}


def _summaries(groups: Mapping[str, _Group], end_s: float) -> dict[str, GroupSummary]:
    return {name: groups[name].summary(end_s) for name in sorted(groups, key=_natural)}


def _natural(name: str) -> tuple[str, list[int]]:
    """Order classes by model and size rather than by digits."""
    model, _, shape = name.rpartition(" ")
    numbers = [int(part) for part in shape.split("x") if part.isdecimal()]
    return (model or shape, numbers)


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Return the value that `share` of the values do not exceed (nearest rank); None of none."""
    if not ordered:
        return None
    return ordered[max(0, ceil(share * len(ordered)) - 1)]
