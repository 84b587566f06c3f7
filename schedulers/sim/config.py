"""What a simulation is asked for, and what it reports besides its events."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from schedulers.planner.demand import Demand
from schedulers.planner.handsized import HandSizes
from schedulers.planner.knobs import PlannerKnobs
from schedulers.policies import SwitchValue
from schedulers.sim.traces import TraceRow

if TYPE_CHECKING:
    from engine.types import DeviceId, DeviceInfo

MONITOR_WINDOW_S: Final = 120.0

POLICIES: Final = (
    "trident",
    "trident-paper",
    *(f"b1-sp{degree}" for degree in (1, 2, 4, 8)),
    *(f"b{number}" for number in range(2, 7)),
    "edf-best-fit",
    "deadline-rounds",
)


class NodeFailure(msgspec.Struct, frozen=True):
    """A node, or one GPU of it, dies for good at a virtual second; both are numbered from 0."""

    node: int
    at_s: float
    gpu: int | None = None

    def __str__(self) -> str:
        """Return it as the command line takes it."""
        where = f"{self.node}" if self.gpu is None else f"{self.node}:{self.gpu}"
        return f"{where}@{self.at_s:g}"

    def doomed(self, infos: Iterable[DeviceInfo]) -> tuple[DeviceId, ...]:
        """Return the devices that die; none if there is no such node or GPU."""
        nodes: dict[str, list[DeviceId]] = {}
        for info in infos:
            nodes.setdefault(info.node, []).append(info.id)
        ordered = [sorted(nodes[name]) for name in sorted(nodes)]
        devices = ordered[self.node] if self.node < len(ordered) else []
        chosen = devices if self.gpu is None else devices[self.gpu : self.gpu + 1]
        return tuple(chosen)


class SimConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One simulation.

    Attributes:
        profile: a profile's name or the path of its file.
        models: what the cluster serves.
        nodes: None means as many as the profile's GPUs per node make of `gpus`.
        rows: requests in order of arrival, each with its model; read once.
        slo_scale: deadline over the best unloaded latency, where a row names none.
        noise: largest share by which an execution differs from its profile.
        stragglers: probability that an execution is a straggler.
        dispatcher: for policies that have several; None means the policy's default.
        switches: additions of the policy to turn on or off; what is not named keeps its default.
        sizes: a placement sized by hand, instead of the policy's planner.
        mix: what baselines are made for that never look at what comes (`traces.mix_of`); None means
            every profiled size as often, which is what planners begin with in any case.
        planner: the planner's knobs.
        window_s: what the monitor looks back on.
        degrade: admit requests that would be late with as many denoise steps as are on time.
        min_steps_share: the least share of its steps that a request allows whose row says nothing;
            None: all of them.
    """

    profile: str
    models: tuple[str, ...]
    gpus: int
    rows: Iterable[TraceRow]
    policy: str
    nodes: int | None = None
    slo_scale: float = 2.5
    seed: int = 0
    noise: float = 0.0
    stragglers: float = 0.0
    failures: tuple[NodeFailure, ...] = ()
    dispatcher: str | None = None
    switches: Mapping[str, SwitchValue] = msgspec.field(default_factory=dict)
    sizes: HandSizes | None = None
    mix: Demand | None = None
    planner: PlannerKnobs = PlannerKnobs()
    window_s: float = MONITOR_WINDOW_S
    degrade: bool = False
    min_steps_share: float | None = None

    def least_steps(self, row: TraceRow) -> int:
        """Return how few denoise steps a request allows."""
        if row.min_steps is not None:
            return min(row.min_steps, row.steps)  # all rows may have been given other steps
        share = 1.0 if self.min_steps_share is None else self.min_steps_share
        return max(1, math.ceil(share * row.steps))


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the events do not tell; milliseconds and `wall_s` are real, the rest is simulated."""

    decisions: int
    decision_ms_p50: float
    decision_ms_p99: float
    switches_count: int
    preemptions: int
    resizes: int
    wall_s: float
    simulated_s: float
