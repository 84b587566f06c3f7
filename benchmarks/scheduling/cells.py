"""A cell is one simulation of the benchmarks: everything that it depends on, and its figures.

It knows how to run itself and no experiment. Figures are simulated, except for the real
milliseconds of decisions and the seconds that the simulation itself took.
"""

from __future__ import annotations

import hashlib
import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any, NamedTuple

import msgspec
import structlog

from benchmarks.scheduling import bound
from benchmarks.scheduling.bound import Piece, all_done_s, load, windows
from engine.types import GenerationRequest, ModelId, RequestId, Shape
from schedulers.cost import CostModel
from schedulers.planner.handsized import HandSizes
from schedulers.profile import load_profile, specs_of
from schedulers.sim.config import MONITOR_WINDOW_S, NodeFailure, SimConfig
from schedulers.sim.demand import Demand, TraceDemand, WorkloadDemand
from schedulers.sim.events import ArriveEvent, FinishEvent, SimEvent, SwitchEvent
from schedulers.sim.experiment import run_experiment
from schedulers.sim.price import gpu_seconds
from schedulers.sim.run import simulate
from schedulers.sim.summary import Summary
from schedulers.sim.traces import TraceRow, mix_of
from schedulers.sim.workloads import workload

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("engine", "schedulers")
PROFILE = "l20"
BOUND = "bound"
WINDOWS = 120
SETTLED_S = 2 * MONITOR_WINDOW_S
MEBIBYTE = 1 << 20
GROUP_FIGURES = ("requests", "slo_attainment", "mean_s", "p95_s")
FIGURES = (
    *("requests", "finished", "rejected", "slo_attainment", "mean_s", "p50_s", "p95_s", "p99_s"),
    *("goodput_rps", "gpu_utilisation", "decisions", "decision_ms_p50", "decision_ms_p99"),
    *("switches", "preemptions", "resizes", "failed_runs", "loads", "evictions", "devices_lost"),
    *("simulated_s", "wall_s"),
)


class Cell(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One simulation.

    Attributes:
        model: a model's name; `A+B` for two that share the cluster.
        workload: a workload's name, or `trace` for the file named on the command line.
        failures: nodes that die for good, as `NODE@SECOND`.
        sizes: fields of a placement sized by hand.
        memory: sample the memory of the simulating process, once a simulated hour.
    """

    policy: str
    model: str
    workload: str = "hetu"
    gpus: int = 128
    rate_scale: float = 1.0
    slo_scale: float = 2.5
    seed: int = 1
    solver: str | None = None
    switches: dict[str, bool | int] = {}
    sizes: dict[str, int | dict[str, int]] | None = None
    noise: float = 0.0
    failures: tuple[str, ...] = ()
    steps: int | None = None
    duration_s: float | None = None
    memory: bool = False

    @property
    def models(self) -> tuple[str, ...]:
        """Return the names of all models."""
        return tuple(self.model.split("+"))

    @property
    def key(self) -> str:
        """Return a name that differs wherever anything differs."""
        return msgspec.json.encode(self, order="deterministic").decode()


@cache
def fingerprint(policy: str = "") -> str:
    """Return a hash of all code and profiles that figures of a policy depend on."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".py", ".json"} and path.is_file():
                digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    if policy == BOUND:
        digest.update(Path(bound.__file__).read_bytes())
    return digest.hexdigest()[:16]


class _Ended(NamedTuple):
    on_time: bool
    took_s: float
    settled: bool


class Watch:
    """What the summary does not keep: switches of placement, phases, last of a class, memory."""

    def __init__(self, *, phase_ends_s: Sequence[float], memory: bool) -> None:
        """Watch one simulation."""
        self.switches_s: list[float] = []
        self.last_finish_s: dict[str, float] = {}
        self.memory_mib: list[float] = []
        self._arrivals: dict[str, tuple[str, float]] = {}
        self._ends_s = tuple(phase_ends_s)
        self._phases: list[list[_Ended]] = [[] for _ in self._ends_s]
        self._memory, self._next_s = memory, 0.0

    def see(self, event: SimEvent) -> None:
        """Take one event."""
        match event:
            case SwitchEvent():
                self.switches_s.append(round(event.t, 3))
            case ArriveEvent():
                name = f"{event.height}x{event.width}x{event.frames}"
                self._arrivals[event.request] = name, event.t
                self._sample(event.t)
            case FinishEvent():
                name, arrival_s = self._arrivals.pop(event.request)
                self.last_finish_s[name] = round(event.t, 1)
                phase = bisect_right(self._ends_s, arrival_s)
                if phase < len(self._phases):
                    begin_s = self._ends_s[phase - 1] if phase else 0.0
                    settled = arrival_s >= begin_s + SETTLED_S
                    ended = _Ended(event.on_time, event.t - arrival_s, settled)
                    self._phases[phase].append(ended)

    def per_phase(self) -> list[dict[str, Any]]:
        """Return the figures of every phase of the workload, of requests that have an output.

        `settled` are those of requests that came two windows of the monitor after the phase began.
        """
        return [
            {"ends_s": end_s, **_counts(ended), "settled": _counts([e for e in ended if e.settled])}
            for end_s, ended in zip(self._ends_s, self._phases, strict=True)
        ]

    def _sample(self, now_s: float) -> None:
        if self._memory and now_s >= self._next_s:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            self.memory_mib.append(round(pages * 4096 / MEBIBYTE, 1))
            self._next_s = now_s + 3600


def _counts(ended: Sequence[_Ended]) -> dict[str, Any]:
    mean_s = sum(e.took_s for e in ended) / max(1, len(ended))
    on_time = sum(e.on_time for e in ended)
    return {"finished": len(ended), "on_time": on_time, "mean_s": _rounded(mean_s)}


def run_cell(cell: Cell, trace: Path | None = None) -> dict[str, Any]:
    """Simulate and return the figures; of the policy `bound`, reckon them."""
    if cell.policy == BOUND:
        return bound_figures(cell, demand_of(cell, trace))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    demand = demand_of(cell, trace)
    ends_s = demand.phase_ends_s if isinstance(demand, WorkloadDemand) else ()
    watch = Watch(phase_ends_s=ends_s, memory=cell.memory)
    began = time.process_time()
    summary = run_experiment(
        config_of(cell, demand),
        simulate,
        workload=demand.label,
        rate_scale=cell.rate_scale,
        observers=(watch.see,),
    )
    return {
        **figures_of(summary),
        "switches_s": watch.switches_s,
        "last_finish_s": watch.last_finish_s,
        **({"per_phase": watch.per_phase()} if len(ends_s) > 1 else {}),
        "cpu_s": round(time.process_time() - began, 2),
        "peak_mib": round(getrusage(RUSAGE_SELF).ru_maxrss / 1024, 1),
        **({"memory_mib": watch.memory_mib} if cell.memory else {}),
    }


def demand_of(cell: Cell, trace: Path | None = None) -> Demand:
    """Return the requests of a cell; `trace` is the file that `trace` stands for."""
    if cell.workload == "trace":
        if trace is None:
            raise SystemExit("This experiment replays a published file: give --trace FILE.")
        return TraceDemand(trace, models=cell.models, rate_scale=cell.rate_scale, steps=cell.steps)
    return WorkloadDemand(
        workload(cell.workload),
        models=cell.models,
        gpus=cell.gpus,
        gpu_seconds=gpu_seconds(PROFILE, cell.models),
        seed=cell.seed,
        rate_scale=cell.rate_scale,
        steps=cell.steps,
        duration_s=cell.duration_s,
    )


def config_of(cell: Cell, demand: Demand) -> SimConfig:
    """Return what the simulator is asked for."""
    return SimConfig(
        profile=PROFILE,
        models=cell.models,
        gpus=cell.gpus,
        rows=demand.rows(),
        mix=mix_of(demand.rows()),
        policy=cell.policy,
        slo_scale=cell.slo_scale,
        seed=cell.seed,
        noise=cell.noise,
        failures=tuple(_failure(text) for text in cell.failures),
        dispatcher=cell.solver,
        switches=cell.switches,
        sizes=None if cell.sizes is None else msgspec.convert(cell.sizes, HandSizes),
    )


def bound_figures(cell: Cell, demand: Demand) -> dict[str, Any]:
    """Return the offered load, and the attainment that no policy can exceed."""
    profile = load_profile(PROFILE)
    truth = CostModel(specs_of(profile, cell.models), profile, learn=False)
    price, gpus = gpu_seconds(PROFILE, cell.models), cell.gpus
    pieces = [
        Piece(
            row.arrival_s,
            row.arrival_s + cell.slo_scale * truth.reference_s(wish_of(row)),
            price(row),
        )
        for row in demand.rows()
    ]
    return {
        "requests": len(pieces),
        "rho": _rounded(load(pieces, gpus)),
        "slo_attainment": _rounded(windows(pieces, gpus, count=WINDOWS)),
        "all_done_s": _rounded(all_done_s(pieces, gpus)),
    }


def wish_of(row: TraceRow) -> GenerationRequest:
    """Return the request that a row stands for."""
    return GenerationRequest(
        id=RequestId("priced"),
        model=ModelId(row.model or ""),
        prompt="",
        shape=Shape(row.width, row.height, row.frames),
        steps=row.steps,
        guidance_scale=1.0,
        seed=0,
        arrival_s=row.arrival_s,
        deadline_s=row.arrival_s,
    )


def _failure(text: str) -> NodeFailure:
    node, _, at_s = text.partition("@")
    return NodeFailure(int(node), float(at_s))


def figures_of(summary: Summary) -> dict[str, Any]:
    """Return a summary without what the cell says already, rounded to what can be read."""
    figures = {name: _rounded(getattr(summary, name)) for name in FIGURES}
    classes: dict[str, Mapping[str, Any]] = {
        name.rpartition(" ")[2]: {f: _rounded(getattr(group, f)) for f in GROUP_FIGURES}
        for name, group in summary.per_class.items()
    }
    return {**figures, "per_class": classes}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {name: _rounded(part) for name, part in value.items()}
    return value
