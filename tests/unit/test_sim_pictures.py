"""Pictures hold every run, load and loss, and are drawn for histories of any size."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from engine.types import DeviceId, ModelId, RequestId, StageKind
from schedulers.sim.config import RunFacts
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
)
from schedulers.sim.plot import plot_comparison, plot_run
from schedulers.sim.recording import FAILED, LOAD, LOST, Bars, Latencies, Timeline
from schedulers.sim.summary import RunIdentity, Summary, SummaryBuilder
from tests.support.histories import history

IDENTITY = RunIdentity(
    policy="trident",
    profile="l20",
    models=("m",),
    workload="poisson",
    gpus=8,
    seed=1,
    slo_scale=2.5,
    rate_scale=1.0,
    noise=0.0,
    stragglers=0.0,
    failures=(),
    dispatcher=None,
    switches={},
    versions={},
)
FACTS = RunFacts(
    decisions=0,
    decision_ms_p50=0.0,
    decision_ms_p99=0.0,
    switches_count=0,
    preemptions=0,
    resizes=0,
    wall_s=0.0,
    simulated_s=0.0,
)


def record(events: list[SimEvent]) -> tuple[Summary, Timeline, Latencies]:
    builder, timeline, latencies = SummaryBuilder(), Timeline(), Latencies()
    for event in events:
        for add in (builder.add, timeline.add, latencies.add):
            add(event)
    return builder.summary(IDENTITY, FACTS), timeline, latencies


def run(devices: tuple[str, ...], outcome: RunOutcome = RunOutcome.DONE) -> RunEvent:
    return RunEvent(
        start=1.0,
        end=3.0,
        requests=(RequestId("r"),),
        stage=StageKind.DIFFUSE,
        devices=tuple(map(DeviceId, devices)),
        degree=len(devices),
        step_from=0,
        step_to=1,
        activation_bytes=0,
        outcome=outcome,
    )


def cluster(count: int) -> ClusterEvent:
    return ClusterEvent(
        tuple(ClusterDevice(DeviceId(f"g{i}"), f"n{i // 8}", 9) for i in range(count))
    )


def arrive(name: str, t: float) -> ArriveEvent:
    return ArriveEvent(
        t=t,
        request=RequestId(name),
        model=ModelId("m"),
        height=1,
        width=1,
        frames=1,
        steps=1,
        deadline=t + 5,
    )


def bars(found: Bars) -> list[tuple[float, float, float]]:
    return list(zip(found.rows, found.starts, found.ends, strict=True))


def test_a_run_is_a_bar_on_every_device_of_its_team() -> None:
    _, timeline, _ = record([cluster(3), run(("g0", "g2")), run(("g1",), RunOutcome.FAILED)])
    assert bars(timeline.bars["diffuse"]) == [(0, 1.0, 3.0), (2, 1.0, 3.0)]
    assert bars(timeline.bars[FAILED]) == [(1, 1.0, 3.0)]


def test_loads_losses_and_switches_are_kept() -> None:
    load = LoadEvent(
        start=0, end=2, device=DeviceId("g1"), model=ModelId("m"), stage=StageKind.DECODE, bytes=1
    )
    losses = [DeviceLostEvent(4.0, DeviceId("g0")), DeviceLostEvent(5.0, DeviceId("g1"))]
    events = [cluster(2), load, *losses, DeviceReadyEvent(6.0, DeviceId("g0")), SwitchEvent(7.0, 1)]
    _, timeline, _ = record(events)
    timeline.close()
    assert bars(timeline.bars[LOAD]) == [(1, 0.0, 2.0)]
    assert bars(timeline.bars[LOST]) == [(0, 4.0, 6.0), (1, 5.0, 7.0)]
    assert timeline.switches == [7.0]


def test_what_has_no_output_has_no_end() -> None:
    events = [cluster(1), *(arrive(name, i) for i, name in enumerate("abc"))]
    events += [FinishEvent(4.0, RequestId("b"), on_time=True), RejectEvent(4.0, RequestId("a"), "")]
    _, _, latencies = record(events)
    assert list(latencies.latencies) == [math.inf, 3.0, math.inf]
    assert list(latencies.allowed) == [5.0, 5.0, 5.0]


@pytest.mark.parametrize("requests", [0, 1, 40])
def test_any_history_is_drawn(requests: int, tmp_path: Path) -> None:
    summary, timeline, latencies = record(history(seed=5, requests=requests))
    plot_run(tmp_path / "run.png", summary, timeline, latencies)
    plot_comparison(tmp_path / "both.png", [(summary, latencies), (summary, latencies)])
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_at_all_is_drawn_too(tmp_path: Path) -> None:
    plot_run(tmp_path / "run.png", *record([]))
    assert (tmp_path / "run.png").exists()


def test_nothing_but_refusals_is_drawn_too(tmp_path: Path) -> None:
    events = [cluster(1), arrive("a", 0.0), RejectEvent(0.0, RequestId("a"), "no")]
    summary, timeline, latencies = record(events)
    plot_run(tmp_path / "run.png", summary, timeline, latencies)
    plot_comparison(tmp_path / "both.png", [(summary, latencies)])
    assert (tmp_path / "both.png").exists()


def test_half_an_hour_of_a_large_cluster_is_drawn_in_seconds(tmp_path: Path) -> None:
    summary, timeline, latencies = record([cluster(128)])
    for i in range(40_000):
        timeline.bars.setdefault("diffuse", Bars()).add(i % 128, i / 25, i / 25 + 5)
    timeline.end_s = 1800.0
    started = time.perf_counter()
    plot_run(tmp_path / "run.png", summary, timeline, latencies)
    assert time.perf_counter() - started < 20
