"""The orchestrator follows shifts that need another placement, from the monitor alone."""

from __future__ import annotations

from itertools import takewhile

import pytest

from schedulers.sim.config import MONITOR_WINDOW_S, SimConfig
from schedulers.sim.demand import WorkloadDemand
from schedulers.sim.events import SimEvent, SwitchEvent
from schedulers.sim.price import gpu_seconds
from schedulers.sim.run import simulate
from schedulers.sim.workloads import workload

SHIFT_S = 900.0


@pytest.mark.parametrize(
    ("name", "models"),
    [("drafts", ("cogvideox1.5-5b",)), ("handover", ("flux1", "hunyuanvideo"))],
)
def test_a_switch_follows_a_shift_within_two_windows(name: str, models: tuple[str, ...]) -> None:
    demand = WorkloadDemand(
        workload(name), models=models, gpus=32, gpu_seconds=gpu_seconds("l20", models), seed=1
    )
    limit_s = SHIFT_S + 2 * MONITOR_WINDOW_S
    rows = takewhile(lambda row: row.arrival_s < limit_s, demand.rows())
    switches_s: list[float] = []

    def note(event: SimEvent) -> None:
        if isinstance(event, SwitchEvent):
            switches_s.append(event.t)

    simulate(
        SimConfig(profile="l20", models=models, gpus=32, rows=rows, policy="trident", seed=1),
        on_event=note,
    )
    assert [at for at in switches_s if SHIFT_S < at <= limit_s]
