"""The loop closed: the mix shifts, the planner switches by itself, and the simulator said so."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from benchmarks.observability import live_shift, shift
from schedulers.sim.audit import audit
from schedulers.sim.events import DecideEvent, PlaceEvent, SimEvent, SwitchEvent

MOST_OVERRUNS = 0.7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shift")


@pytest.fixture(scope="module")
def simulated(folder: Path) -> list[SimEvent]:
    events: list[SimEvent] = []
    shift.run_simulated(folder, events.append)
    return events


def recorded(name: str) -> Iterator[SimEvent]:
    with gzip.open(live_shift.RESULTS / name) as lines:
        for line in lines:
            yield msgspec.json.decode(line, type=SimEvent)


def test_in_the_simulator_the_planner_follows_the_shift_and_attainment_recovers(
    simulated: list[SimEvent],
) -> None:
    assert audit(simulated) == []
    assert shift.failings(shift.findings(simulated)) == []


def test_the_recorded_live_run_agrees_with_the_simulator(simulated: list[SimEvent]) -> None:
    live = list(recorded(live_shift.LIVE))
    assert audit(live) == []
    assert shift.disagreements(shift.findings(live), shift.findings(simulated)) == []


def test_the_recorded_live_run_says_why_it_switched_and_why_stages_ran_where_they_did() -> None:
    live = list(recorded(live_shift.LIVE))
    switches = [event for event in live if isinstance(event, SwitchEvent)]
    assert all("mix shifted" in event.why for event in switches)
    assert all(len(event.stages) == shift.DEVICES for event in switches)
    assert any(isinstance(event, PlaceEvent) for event in live)
    launched = {event.request for event in live if isinstance(event, DecideEvent) and event.devices}
    assert len(launched) == shift.findings(live).requests


@pytest.mark.slow
def test_on_real_workers_the_planner_follows_the_shift_as_the_simulator_says(
    folder: Path, simulated: list[SimEvent]
) -> None:
    live: list[SimEvent] = []
    overruns = shift.run_live(folder, live.append)
    if overruns > MOST_OVERRUNS:
        pytest.skip(f"The machine is too busy: {overruns:.0%} of launches missed their pace.")
    assert audit(live) == []
    assert shift.disagreements(shift.findings(live), shift.findings(simulated)) == []
