"""A workload whose mix changes, on real workers and in the simulator: the same requests and policy.

Four devices, each with memory for one of two models. At first most requests are of one model, then
most are of the other: the devices that the placement gives it cannot follow, requests are late, and
only another placement helps. Nobody tells the planner; it has the monitor's spans. `live` runs it on
worker processes that keep the profile's pace, `simulated` in virtual time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.observability.pacing import PacedExecutor
from engine import ModelId, Shape, SystemClock
from engine.ports import Executor
from engine.stages.random_model import write_model
from engine.types import RequestId, StageKind
from gateway.bench import EngineTarget, Replay, until_ready
from gateway.comparing import changes
from gateway.embedded import EmbeddedEngine
from gateway.runner import Telemetry, live_knobs, open_models
from gateway.settings import Settings
from observability.meters import Meters
from observability.monitor import StageMonitor
from observability.tracing import build_provider
from schedulers.cost import CostModel
from schedulers.planner.knobs import PlannerKnobs
from schedulers.profile import load_profile
from schedulers.sim.config import SimConfig
from schedulers.sim.events import ArriveEvent, FinishEvent, RejectEvent, SimEvent, SwitchEvent
from schedulers.sim.run import simulate
from schedulers.sim.traces import TraceRow
from schedulers.sim.world import World

WINDOW_S: Final = 12.0
SHIFT_S: Final = 60.0
END_S: Final = 150.0
DEVICES: Final = 4
MEMORY_BYTES: Final = 6_500_000
"""Of a device: weights of `sd` are 4.5 MB, of `flux` 2.5 MB, so one model and its activations."""
SLO_SCALE: Final = 3.0
PLANNER: Final = PlannerKnobs(cooldown_s=WINDOW_S, min_requests=8)

_SHAPE, _STEPS = Shape(32, 32), 2
_RATES_PER_S: Final = {"often": 1.3, "seldom": 0.1}
_STAGE_S: Final = {StageKind.ENCODE: 0.2, StageKind.DIFFUSE: 1.0, StageKind.DECODE: 0.2}
_ACTIVATION_BYTES: Final = 200_000
_LOAD_S: Final = 0.05


def write_models(folder: Path) -> tuple[Path, ...]:
    """Write two small random models, unless they are there, and return their folders."""
    for family in ("sd", "flux"):
        if not (folder / family).exists():
            write_model(folder / family, family, seed=1)
    return folder / "sd", folder / "flux"


def write_profile(path: Path, models: Sequence[Path]) -> Path:
    """Write the pace of the devices: assumed figures, with the weights that the models really have."""
    specs = open_models(models, device="cpu")
    head = {"schema": "tridentserve.profile/1", "name": "paced", "device": "a paced CPU worker"}
    node = {
        "gpus": DEVICES,
        "memory_bytes": MEMORY_BYTES,
        "reserve_bytes": 0,
        "host_to_device_bytes_per_s": 1e9,
        "peer_bytes_per_s": 1e9,
        "network_bytes_per_s": 1e9,
        "change_s": 0.01,
    }
    node["provenance"] = dict.fromkeys(node, "assumed")
    profiled = {
        str(spec.id): {
            "modality": spec.modality.value,
            "default_steps": _STEPS,
            "provenance": dict.fromkeys(("default_steps", "min_degrees"), "assumed"),
            "stages": {kind: _stage(kind, spec.weight_bytes[kind]) for kind in StageKind},
            "edges": {kind: _edge() for kind in (StageKind.DIFFUSE, StageKind.DECODE)},
        }
        for spec in specs
    }
    path.write_bytes(msgspec.json.encode({**head, "node": node, "models": profiled}))
    return path


def _stage(kind: StageKind, weight_bytes: int) -> dict[str, Any]:
    is_diffuse = kind is StageKind.DIFFUSE
    figures = {"weight_bytes": weight_bytes, "load_host_s": _LOAD_S, "load_peer_s": _LOAD_S}
    entry = {
        "shape": None if kind is StageKind.ENCODE else _SHAPE,
        "duration_s": _STAGE_S[kind] / (_STEPS if is_diffuse else 1),
        "peak_activation_bytes": _ACTIVATION_BYTES,
        "provenance": "assumed",
        "memory_provenance": "assumed",
    }
    return {**figures, "provenance": dict.fromkeys(figures, "assumed"), "entries": [entry]}


def _edge() -> dict[str, Any]:
    figures = {
        "fixed_bytes": 8192,
        "bytes_per_pixel": 0.0,
        "within_node_s": 0.002,
        "across_node_s": 0.002,
    }
    return {**figures, "provenance": dict.fromkeys(figures, "assumed")}


def rows(seed: int = 2) -> list[TraceRow]:
    """Return the requests of both models, in order of arrival."""
    rng = random.Random(seed)  # noqa: S311 - no cryptography
    found = [*_arrivals("sd", "often", "seldom", rng), *_arrivals("flux", "seldom", "often", rng)]
    return sorted(found, key=lambda row: row.arrival_s)


def _arrivals(model: str, before: str, after: str, rng: random.Random) -> Iterator[TraceRow]:
    """Yield requests at the rates before and after the shift, gaps between half and 1.5 times."""
    at_s = 0.0
    while True:
        rate = _RATES_PER_S[before if at_s < SHIFT_S else after]
        at_s += rng.uniform(0.5, 1.5) / rate
        if at_s >= END_S:
            return
        size = {"height": _SHAPE.height_px, "width": _SHAPE.width_px, "frames": 1}
        yield TraceRow(arrival_s=at_s, steps=_STEPS, model=ModelId(model), **size)


def simulated(
    profile: Path, requests: Sequence[TraceRow], on_event: Callable[[SimEvent], None]
) -> None:
    """Replay the requests in virtual time."""
    config = SimConfig(
        profile=str(profile),
        models=("sd", "flux"),
        gpus=DEVICES,
        nodes=1,
        rows=requests,
        policy="trident",
        slo_scale=SLO_SCALE,
        switches=changes(live_knobs()),
        planner=PLANNER,
        window_s=WINDOW_S,
    )
    simulate(config, on_event=on_event)


async def live(
    models: Sequence[Path],
    profile: Path,
    requests: Sequence[TraceRow],
    data_dir: Path,
    on_event: Callable[[SimEvent], None],
) -> float:
    """Replay the requests on worker processes; return the share of launches that overran."""
    settings = Settings(
        models=tuple(models),
        data_dir=data_dir,
        profile=profile,
        devices=DEVICES,
        threads_per_device=1,
        device_memory_bytes=MEMORY_BYTES,
        planner_window_s=WINDOW_S,
        step_batch=1,
        embedding_cache_bytes=0,  # a simulated prompt is always a new one
    )
    monitor = StageMonitor(window_s=WINDOW_S)
    telemetry = Telemetry(build_provider(processors=[monitor]), monitor, Meters())
    truth = CostModel(open_models(models, device="cpu"), load_profile(str(profile)), learn=False)
    paced: list[PacedExecutor] = []

    def around(executor: Executor) -> Executor:
        paced.append(PacedExecutor(executor, SystemClock(), World(truth, random.Random(0))))  # noqa: S311 - no cryptography
        return paced[0]

    engine = EmbeddedEngine(settings, telemetry, on_event, PLANNER, waits=True, around=around)
    replay = Replay(
        EngineTarget(engine), requests, slo_scale=SLO_SCALE, reference_s=truth.reference_s
    )
    await engine.start()
    try:
        await until_ready(engine)
        await replay.warm_up()
        engine.begin_history()
        await replay.run()
    finally:
        await engine.close()
        telemetry.meters.shutdown()
    return paced[0].overruns / paced[0].launches


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """What a run shows; shares are of the requests that arrive in a span of time.

    Attributes:
        switches_s: when placements were adopted, in seconds since the start.
        switch_lag_s: from the shift to the next of them; None if there was none.
        before: on time, from two windows after the start to the shift.
        between: on time, of the half window before that switch took effect.
        after: on time, of the last two windows.
    """

    requests: int
    rejected: int
    switches_s: tuple[float, ...]
    switch_lag_s: float | None
    before: float
    between: float
    after: float


def findings(events: Iterable[SimEvent]) -> Findings:
    """Read a history."""
    arrived: dict[RequestId, float] = {}
    met: set[RequestId] = set()
    switches_s, rejected = list[float](), 0
    for event in events:
        match event:
            case ArriveEvent():
                arrived[event.request] = event.t
            case FinishEvent(on_time=True):
                met.add(event.request)
            case RejectEvent():
                rejected += 1
            case SwitchEvent():
                switches_s.append(event.t)
            case _:
                pass
    after_shift = [at_s for at_s in switches_s if at_s > SHIFT_S]
    lag_s = min(after_shift) - SHIFT_S if after_shift else None

    def share(begin_s: float, end_s: float) -> float:
        names = [name for name, at_s in arrived.items() if begin_s <= at_s < end_s]
        return len(met.intersection(names)) / len(names)

    until_s = SHIFT_S + (lag_s or 2 * WINDOW_S)
    return Findings(
        requests=len(arrived),
        rejected=rejected,
        switches_s=tuple(round(at_s, 2) for at_s in switches_s),
        switch_lag_s=lag_s,
        before=share(2 * WINDOW_S, SHIFT_S),
        between=share(until_s - WINDOW_S / 2, until_s),
        after=share(END_S - 2 * WINDOW_S, END_S),
    )


def run_live(folder: Path, on_event: Callable[[SimEvent], None]) -> float:
    """Run it live with models and profile in `folder`; return the share of overruns."""
    models = write_models(folder)
    profile = write_profile(folder / "profile.json", models)
    return asyncio.run(live(models, profile, rows(), folder / "data", on_event))


def run_simulated(folder: Path, on_event: Callable[[SimEvent], None]) -> None:
    """Run it in the simulator with the same."""
    models = write_models(folder)
    simulated(write_profile(folder / "profile.json", models), rows(), on_event)


TOLERANCE: Final = 0.15
"""Of shares on time; the machine has other things to do, the simulated one has not."""


def failings(run: Findings) -> list[str]:
    """Return what a run does not show that it should, as sentences."""
    found = []
    if run.switch_lag_s is None or run.switch_lag_s > 2 * WINDOW_S:
        found.append(f"No switch within two windows of the shift: {run.switch_lag_s} s.")
    if run.before < 1 - TOLERANCE:
        found.append(f"Before the shift only {run.before:.0%} were on time.")
    if run.between > run.before - TOLERANCE:
        found.append(f"The shift did no harm: {run.between:.0%} were on time until the switch.")
    if run.after < run.before - TOLERANCE:
        found.append(f"Attainment did not recover: {run.before:.0%} before, {run.after:.0%} after.")
    if run.rejected:
        found.append(f"{run.rejected} requests have no output.")
    return found


def disagreements(live: Findings, simulated: Findings) -> list[str]:
    """Return where two runs differ by more than the tolerances, as sentences.

    Both must show the same; shares before and after may differ by `TOLERANCE`, the switch by half
    a window.
    """
    found = [f"live: {text}" for text in failings(live)]
    found += [f"simulated: {text}" for text in failings(simulated)]
    if len(live.switches_s) != len(simulated.switches_s):
        found.append(f"Switches at {live.switches_s} and at {simulated.switches_s} s.")
    elif live.switch_lag_s is not None and simulated.switch_lag_s is not None:
        apart_s = abs(live.switch_lag_s - simulated.switch_lag_s)
        if apart_s > WINDOW_S / 2:
            found.append(f"The switches that follow the shift are {apart_s:.1f} s apart.")
    for name, one, other in (
        ("before", live.before, simulated.before),
        ("after", live.after, simulated.after),
    ):
        if abs(one - other) > TOLERANCE:
            found.append(f"On time {name}: {one:.0%} and {other:.0%}.")
    return found
