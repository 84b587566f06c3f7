"""The loop closed: the mix shifts, the planner switches by itself, and the simulator said so."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.observability import shift
from schedulers.sim.audit import audit
from schedulers.sim.events import SimEvent

MOST_OVERRUNS = 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shift")


@pytest.fixture(scope="module")
def simulated(folder: Path) -> list[SimEvent]:
    events: list[SimEvent] = []
    shift.run_simulated(folder, events.append)
    return events


def test_in_the_simulator_the_planner_follows_the_shift_and_attainment_recovers(
    simulated: list[SimEvent],
) -> None:
    assert audit(simulated) == []
    assert shift.failings(shift.findings(simulated)) == []


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
