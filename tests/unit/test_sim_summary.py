"""The summary of a small history that can be reckoned by hand."""

from __future__ import annotations

import msgspec
import pytest

from engine.types import DeviceId, ModelId, RequestId, StageKind
from schedulers.sim.compare import compare
from schedulers.sim.config import RunFacts
from schedulers.sim.events import (
    ArriveEvent,
    ClusterDevice,
    ClusterEvent,
    DegradeEvent,
    DeviceLostEvent,
    DeviceReadyEvent,
    EvictEvent,
    FinishEvent,
    LoadEvent,
    RejectEvent,
    RunEvent,
    RunOutcome,
    SimEvent,
    SwitchEvent,
)
from schedulers.sim.rendering import render
from schedulers.sim.summary import RunIdentity, Summary, SummaryBuilder, percentile

FACTS = RunFacts(
    decisions=7,
    decision_ms_p50=0.5,
    decision_ms_p99=2.0,
    switches_count=1,
    preemptions=2,
    resizes=3,
    wall_s=1.5,
    simulated_s=100.0,
)
IDENTITY = RunIdentity(
    policy="trident",
    profile="l20",
    models=("sd3",),
    workload="poisson",
    gpus=4,
    seed=1,
    slo_scale=2.5,
    rate_scale=1.0,
    noise=0.2,
    stragglers=0.0,
    failures=("1@600",),
    dispatcher="ilp",
    switches={"scale-up": False},
    versions={"tridentserve": "0"},
)
SD3 = ModelId("sd3")


def cluster(devices: int = 4) -> ClusterEvent:
    return ClusterEvent(
        tuple(ClusterDevice(DeviceId(f"g{i}"), f"n{i // 2}", 1) for i in range(devices))
    )


def arrive(name: str, t: float, deadline: float, *, edge: int = 64, tenant: str = "a") -> SimEvent:
    return ArriveEvent(
        t=t,
        request=RequestId(name),
        model=SD3,
        height=edge,
        width=edge,
        frames=1,
        steps=20,
        deadline=deadline,
        tenant=tenant,
    )


def run(
    stage: StageKind, start: float, end: float, devices: int = 1, **changes: object
) -> SimEvent:
    event = RunEvent(
        start=start,
        end=end,
        requests=(RequestId("r"),),
        stage=stage,
        devices=tuple(DeviceId(f"g{i}") for i in range(devices)),
        degree=devices,
        step_from=0,
        step_to=0,
        activation_bytes=0,
    )
    return msgspec.structs.replace(event, **changes)


def finish(name: str, t: float, *, on_time: bool = True) -> SimEvent:
    return FinishEvent(t, RequestId(name), on_time)


def summarise(*events: SimEvent) -> Summary:
    builder = SummaryBuilder()
    for event in events:
        builder.add(event)
    return builder.summary(IDENTITY, FACTS)


def test_latencies_attainment_and_goodput_are_over_all_requests() -> None:
    summary = summarise(
        cluster(),
        *(arrive(f"r{i}", 10.0 * i, 10.0 * i + 5) for i in range(5)),
        *(finish(f"r{i}", 10.0 * i + i + 1, on_time=i < 4) for i in range(5)),
    )
    assert (summary.requests, summary.finished, summary.rejected) == (5, 5, 0)
    assert summary.slo_attainment == 0.8
    assert (summary.mean_s, summary.p50_s, summary.p95_s) == (3.0, 3.0, 5.0)
    assert summary.goodput_rps == pytest.approx(0.8 * 0.1)


def test_a_rejected_request_is_late_and_waits_to_the_end_of_the_simulation() -> None:
    served = (arrive("r0", 0.0, 5.0), finish("r0", 100.0, on_time=False))
    summary = summarise(
        cluster(), *served, arrive("r1", 10.0, 15.0), RejectEvent(11.0, RequestId("r1"), "no")
    )
    assert summary.rejected == 1
    assert summary.slo_attainment == 0.0
    assert summary.mean_s == (100.0 + 90.0) / 2
    assert summary.reject_reasons == {"no": 1}


def test_a_rejection_never_counts_for_less_than_the_deadline() -> None:
    summary = summarise(cluster(), arrive("r", 0.0, 50.0), RejectEvent(0.0, RequestId("r"), "no"))
    assert summary.p99_s == 50.0


def test_an_unfinished_request_counts_as_missed_but_not_as_rejected() -> None:
    summary = summarise(
        cluster(), arrive("r0", 0.0, 5.0), arrive("r1", 0.0, 5.0), finish("r1", 4.0)
    )
    assert (summary.requests, summary.finished, summary.rejected) == (2, 1, 0)
    assert summary.slo_attainment == 0.5
    assert summary.p99_s == 5.0


def test_classes_and_tenants_are_kept_apart_and_ordered_by_size() -> None:
    summary = summarise(
        cluster(),
        arrive("big", 0.0, 5.0, edge=1024, tenant="b"),
        arrive("small", 0.0, 5.0, edge=256),
        finish("big", 9.0, on_time=False),
        finish("small", 1.0),
    )
    assert list(summary.per_class) == ["sd3 256x256x1", "sd3 1024x1024x1"]
    assert [group.slo_attainment for group in summary.per_class.values()] == [1.0, 0.0]
    assert [group.mean_s for group in summary.per_tenant.values()] == [1.0, 9.0]


def test_utilisation_is_busy_over_living_gpu_seconds() -> None:
    summary = summarise(
        cluster(),
        run(StageKind.ENCODE, 0.0, 10.0),
        run(StageKind.DIFFUSE, 10.0, 60.0, devices=4),
        run(StageKind.DECODE, 60.0, 100.0),
        LoadEvent(
            start=0, end=20, device=DeviceId("g3"), model=SD3, stage=StageKind.ENCODE, bytes=1
        ),
    )
    assert summary.gpu_utilisation == pytest.approx(
        {"encode": 0.025, "diffuse": 0.5, "decode": 0.1, "load": 0.05, "total": 0.625}
    )


def test_dead_gpus_are_not_counted_as_idle() -> None:
    summary = summarise(
        cluster(),
        DeviceLostEvent(50.0, DeviceId("g0")),
        DeviceLostEvent(25.0, DeviceId("g1")),
        DeviceReadyEvent(75.0, DeviceId("g1")),
        run(StageKind.DIFFUSE, 0.0, 100.0, devices=1),
    )
    assert summary.gpu_utilisation["total"] == pytest.approx(100 / (400 - 50 - 50))
    assert summary.devices_lost == 2


def test_counts_come_from_events_and_from_the_run() -> None:
    summary = summarise(
        cluster(),
        SwitchEvent(1.0, 2),
        EvictEvent(
            start=0, end=0, device=DeviceId("g3"), model=SD3, stage=StageKind.ENCODE, bytes=1
        ),
        run(StageKind.DIFFUSE, 0.0, 1.0, outcome=RunOutcome.FAILED),
    )
    assert (summary.evictions, summary.loads, summary.failed_runs) == (1, 0, 1)
    assert (summary.switches, summary.preemptions, summary.resizes) == (1, 2, 3)
    assert (summary.nodes, summary.decisions) == (2, 7)


def test_nothing_at_all_has_no_latency_and_no_load() -> None:
    summary = summarise()
    assert (summary.requests, summary.mean_s, summary.p99_s) == (0, None, None)
    assert summary.gpu_utilisation["total"] == 0.0
    assert "mean - s" in render(summary)


def test_reasons_of_rejection_stay_bounded() -> None:
    events: list[SimEvent] = []
    for i in range(100):
        events += [arrive(f"r{i}", 0.0, 1.0), RejectEvent(0.0, RequestId(f"r{i}"), f"no {i}")]
    summary = summarise(*events)
    assert len(summary.reject_reasons) == 33
    assert summary.reject_reasons["other reasons"] == 68


@pytest.mark.parametrize(("share", "expected"), [(0.5, 2.0), (0.95, 4.0), (0.25, 1.0), (0.0, 1.0)])
def test_percentiles_are_nearest_rank(share: float, expected: float) -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], share) == expected


def test_the_text_says_first_that_it_is_simulated_and_names_the_circumstances() -> None:
    text = render(summarise(cluster(), arrive("r", 0.0, 5.0), finish("r", 1.0)))
    assert text.startswith("SIMULATED: policy trident, 4 GPUs on 2 nodes, profile l20, sd3")
    assert "noise 20%; failing 1@600; dispatcher ilp; scale-up off" in text
    assert "100.00% of all requests" in text
    assert "sd3 64x64x1" in text


def test_tenants_are_shown_only_if_there_are_several() -> None:
    one = (cluster(), arrive("r", 0.0, 5.0), finish("r", 1.0))
    other = (arrive("s", 0.0, 5.0, tenant="b"), finish("s", 1.0))
    assert "tenant" not in render(summarise(*one))
    assert "tenant" in render(summarise(*one, *other))


def test_a_comparison_has_a_row_per_policy_and_a_column_per_class() -> None:
    first = summarise(cluster(), arrive("r", 0.0, 5.0), finish("r", 1.0))
    other = msgspec.structs.replace(first, policy="b4", slo_attainment=0.25, per_class={})
    text = compare([first, other])
    assert text.startswith("SIMULATED: 4 GPUs")
    assert [line.split()[:2] for line in text.splitlines()[3:5]] == [
        ["trident", "100.00%"],
        ["b4", "25.00%"],
    ]
    assert text.splitlines()[-1].split() == ["sd3", "64x64x1", "100.0%", "-"]


def test_a_summary_travels_as_json() -> None:
    summary = summarise(cluster(), arrive("r", 0.0, 5.0), finish("r", 1.0))
    written = msgspec.json.decode(msgspec.json.encode(summary))
    required = "requests finished rejected slo_attainment mean_s p50_s p95_s p99_s goodput_rps "
    required += "gpu_utilisation per_class decisions decision_ms_p99 switches preemptions wall_s"
    assert set(required.split()) <= set(written)
    assert written["simulated"] is True


def degraded(name: str, t: float) -> SimEvent:
    return DegradeEvent(t=t, request=RequestId(name), wished=20, least=5, steps=8, late_s=3.0)


def of_degraded() -> Summary:
    """Four requests: on time whole, on time with fewer steps, late with fewer steps, late whole."""
    builder = SummaryBuilder()
    builder.add(cluster())
    for name in "abcd":
        builder.add(arrive(name, 0.0, 10.0))
    for name, at, on_time in (("a", 9.0, True), ("b", 9.5, True), ("c", 11.0, False)):
        if name != "a":
            builder.add(degraded(name, 0.0))
        builder.add(FinishEvent(at, RequestId(name), on_time))
    builder.add(FinishEvent(12.0, RequestId("d"), on_time=False))
    return builder.summary(msgspec.structs.replace(IDENTITY, degrade=True), FACTS)


def test_what_was_on_time_with_fewer_steps_is_counted_apart() -> None:
    summary = of_degraded()
    assert (summary.slo_attainment, summary.degraded, summary.degraded_on_time) == (0.25, 2, 1)
    assert summary.degraded_attainment == 0.25
    (group,) = summary.per_class.values()
    assert (group.slo_attainment, group.degraded, group.degraded_on_time) == (0.25, 2, 1)


def test_a_reader_and_a_comparison_see_what_was_degraded() -> None:
    summary = of_degraded()
    text = render(summary)
    assert "degrading" in text
    assert "25.00% more with fewer steps (2 degraded, 1 of them on time)" in text
    assert "on time, fewer steps" in compare([summary])
    assert "fewer steps" not in compare([msgspec.structs.replace(summary, degrade=False)])
