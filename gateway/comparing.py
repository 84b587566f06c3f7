"""What the simulator says of a replay that was measured, and how far the two are apart."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from schedulers.dispatch.knobs import Knobs
from schedulers.policies import SwitchValue
from schedulers.profile import Profile
from schedulers.sim.config import SimConfig
from schedulers.sim.experiment import run_experiment
from schedulers.sim.rendering import seconds, table
from schedulers.sim.run import simulate
from schedulers.sim.summary import Summary
from schedulers.sim.traces import TraceRow


class Gap(msgspec.Struct, frozen=True):
    """One figure, live and simulated; `error` is relative, but of an attainment in points."""

    figure: str
    live: float
    simulated: float
    error: float


class Comparison(msgspec.Struct, frozen=True):
    """A replay that was measured and simulated."""

    live: Summary
    simulated: Summary
    gaps: tuple[Gap, ...]


def simulated(
    profile: Profile,
    rows: Sequence[TraceRow],
    *,
    devices: int,
    memory_bytes: int | None,
    policy: str,
    slo_scale: float,
    workload: str,
    solver: str | None,
    switches: Mapping[str, SwitchValue],
) -> Summary:
    """Replay the same rows on a simulated machine like this one, by what was measured on it."""
    node = msgspec.structs.replace(
        profile.node, gpus=devices, memory_bytes=memory_bytes or profile.node.memory_bytes
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.json"
        path.write_bytes(msgspec.json.encode(msgspec.structs.replace(profile, node=node)))
        config = SimConfig(
            profile=str(path),
            models=tuple(dict.fromkeys(str(row.model) for row in rows)),
            gpus=devices,
            nodes=1,
            rows=rows,
            policy=policy,
            slo_scale=slo_scale,
            dispatcher=solver,
            switches=switches,
        )
        summary = run_experiment(config, simulate, workload=workload)
    return msgspec.structs.replace(summary, profile=profile.name)


def changes(knobs: Knobs) -> dict[str, SwitchValue]:
    """Return the knobs that are not as usual."""
    usual = msgspec.structs.asdict(Knobs())
    now: Mapping[str, SwitchValue] = msgspec.structs.asdict(knobs)
    return {name: value for name, value in now.items() if value != usual[name]}


def compare(live: Summary, simulated: Summary) -> Comparison:
    """Return how far the simulation is from what was measured."""
    pairs = (
        ("mean", live.mean_s, simulated.mean_s),
        ("P50", live.p50_s, simulated.p50_s),
        ("P95", live.p95_s, simulated.p95_s),
    )
    gaps = [
        Gap(name, is_, says, says / is_ - 1)
        for name, is_, says in pairs
        if is_ and says is not None
    ]
    on_time = (live.slo_attainment, simulated.slo_attainment)
    gaps.append(Gap("on time", *on_time, on_time[1] - on_time[0]))
    return Comparison(live, simulated, tuple(gaps))


def render_comparison(comparison: Comparison) -> str:
    """Return the gaps as a table."""
    rows = []
    for gap in comparison.gaps:
        if gap.figure == "on time":
            shown = (f"{gap.live:.1%}", f"{gap.simulated:.1%}", f"{100 * gap.error:+.1f} points")
        else:
            shown = (f"{seconds(gap.live)} s", f"{seconds(gap.simulated)} s", f"{gap.error:+.1%}")
        rows.append((gap.figure, *shown))
    return "\n".join(table(("", "measured", "simulated", "error"), rows))
