"""Decisions, placements and devices are counted as they are, and stay what they were."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.types import (
    ClusterView,
    DeviceId,
    DeviceInfo,
    DeviceView,
    DispatchPlan,
    ModelId,
    Placement,
    PlanId,
    StageKey,
    StageKind,
)
from gateway.measured import EngineGauges, MeasuredDispatcher, MeasuredPlanner
from observability.meters import Meters
from observability.monitor import StageMonitor

STAGE = StageKey(ModelId("m"), StageKind.DIFFUSE)


@pytest.fixture
def meters() -> Iterator[Meters]:
    made = Meters()
    yield made
    made.shutdown()


def value(meters: Meters, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(meters.page().decode()):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return None


def device(number: int, *, busy_until_s: float | None = None) -> DeviceView:
    return DeviceView(
        info=DeviceInfo(DeviceId(f"cpu:{number}"), "local", 100),
        capacity_bytes=100,
        free_bytes=50,
        resident=frozenset({STAGE}),
        desired=frozenset({STAGE}),
        busy_until_s=busy_until_s,
    )


VIEW = ClusterView(
    configured=tuple(DeviceId(f"cpu:{i}") for i in range(4)),
    devices=(device(0), device(1, busy_until_s=9.0), device(2)),
    weight_bytes={STAGE: 50},
    now_s=1.0,
)


class OnePlan:
    """Decides always the same."""

    plan_made = DispatchPlan(id=PlanId(7))

    def plan(self, ready: object, view: ClusterView) -> DispatchPlan:
        del ready, view
        return self.plan_made

    def place(self, view: ClusterView, snapshot: object) -> Placement | None:
        del snapshot
        return Placement(1, {}) if view.now_s > 0 else None


def test_a_decision_is_timed_told_and_passed_on(meters: Meters) -> None:
    told: list[object] = []
    measured = MeasuredDispatcher(OnePlan(), meters.meter, [lambda *facts: told.append(facts)])  # type: ignore[arg-type]
    assert measured.plan([], VIEW) is OnePlan.plan_made
    assert told == [(OnePlan.plan_made, VIEW)]
    assert value(meters, "tridentserve_dispatcher_decision_duration_seconds_count") == 1.0


def test_only_new_placements_are_re_plans(meters: Meters) -> None:
    planner = MeasuredPlanner(OnePlan(), meters.meter)
    planner.place(VIEW, None)
    planner.place(msgspec.structs.replace(VIEW, now_s=0.0), None)
    assert value(meters, "tridentserve_planner_replans_total") == 1.0
    assert value(meters, "tridentserve_planner_duration_seconds_count") == 2.0


def test_gauges_tell_devices_by_state_and_what_is_resident(meters: Meters) -> None:
    gauges = EngineGauges(meters.meter, StageMonitor())
    gauges.decided(OnePlan.plan_made, VIEW)
    states = {s: value(meters, "tridentserve_devices", state=s) for s in ("busy", "idle", "lost")}
    assert states == {"busy": 1.0, "idle": 2.0, "lost": 1.0}
    assert value(meters, "tridentserve_residency_size_bytes", model="m", stage="diffuse") == 150.0
    assert value(meters, "tridentserve_monitor_blind") == 1.0


def test_before_the_first_decision_there_are_no_devices(meters: Meters) -> None:
    EngineGauges(meters.meter, StageMonitor())
    assert value(meters, "tridentserve_devices", state="idle") is None
