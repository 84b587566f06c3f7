"""The board: what a decision may count on."""

from __future__ import annotations

from engine.types import Assignment, RunningView, StageKind
from schedulers.dispatch.trident import TridentDispatcher
from tests.support.clusters import COST, LONG, a_cluster, a_ready


def test_a_launch_that_has_just_lost_a_device_is_no_longer_counted_on() -> None:
    task = a_ready("r", LONG, StageKind.DIFFUSE)
    doomed = RunningView(
        assignment=Assignment(
            task=task, team=("n1g0", "n1g1"), expected_s=9.0, activation_bytes=0, why=""
        ),
        started_s=0.0,
        ends_s=9.0,
        step=1,
        step_at_s=1.0,
        is_changing=False,
    )
    view = a_cluster(nodes=2, lost=["n1g0"], running=(doomed,), now_s=1.5)
    plan = TridentDispatcher(COST).plan([a_ready("s", sequence=1)], view)
    assert (plan.pauses, plan.resizes) == ((), ())
