"""Baselines that know deadlines: EDF best fit and deadline rounds."""

from __future__ import annotations

import pytest

from engine.types import Assignment, DeviceId, RunningView, Shape, StageKind
from schedulers.baselines.catalogue import round_s
from schedulers.baselines.deadlines import EdfBestFit
from schedulers.baselines.dispatcher import BaselineDispatcher
from schedulers.baselines.rounds import DeadlineRounds
from schedulers.cost import CostModel
from schedulers.planner.demand import ClassDemand, Demand
from schedulers.profile import specs_of
from schedulers.sim.mixes import SD3
from tests.support.clusters import (
    COST,
    LONG,
    MIDDLE,
    MIX,
    PROFILE,
    SHORT,
    a_cluster,
    a_ready,
    device_ids,
)

ENCODE, DIFFUSE, DECODE = StageKind


def edf() -> BaselineDispatcher:
    return BaselineDispatcher(COST, EdfBestFit())


def rounds(round_s: float = 1.0) -> BaselineDispatcher:
    return BaselineDispatcher(COST, DeadlineRounds(round_s))


def running(
    name: str, shape: Shape, team: tuple[str, ...], *, deadline_s: float = 1e4, sequence: int = 50
) -> RunningView:
    """Return a diffuse that has done one step of six at second 10."""
    task = a_ready(name, shape, DIFFUSE, sequence=sequence, deadline_s=deadline_s)
    step_s = COST.step_s(task.request.model, shape, len(team))
    return RunningView(
        assignment=Assignment(
            task=task,
            team=tuple(DeviceId(d) for d in team),
            expected_s=6 * step_s,
            activation_bytes=0,
            why="",
        ),
        started_s=10.0 - step_s,
        ends_s=10.0 + 5 * step_s,
        step=1,
        step_at_s=10.0,
        is_changing=False,
    )


class TestEdfBestFit:
    def test_the_smallest_degree_that_is_on_time_is_taken(self) -> None:
        # 6 steps at 4.71, 2.91, 1.55, .84 s and a decode of 2 s: least 2, on time from 4 on.
        busy = [d for d in device_ids(1) if d not in {"n0g0", "n0g1", "n0g2", "n0g3"}]
        task = a_ready("r", MIDDLE, DIFFUSE, deadline_s=15.0)
        [launch] = edf().plan([task], a_cluster(busy=busy)).assignments
        assert launch.degree == 4
        assert "smallest degree that is on time" in launch.why

    def test_a_late_one_takes_the_degree_that_ends_soonest(self) -> None:
        task = a_ready("r", MIDDLE, DIFFUSE, deadline_s=1.0)
        [launch] = edf().plan([task], a_cluster()).assignments
        assert launch.degree == 8
        assert "late" in launch.why

    def test_leftover_devices_go_to_the_most_urgent_that_was_placed(self) -> None:
        loose = a_ready("loose", SHORT, DIFFUSE, deadline_s=1000.0)
        urgent = a_ready("urgent", SHORT, DIFFUSE, sequence=1, deadline_s=900.0)
        plan = edf().plan([loose, urgent], a_cluster(per_node=3))
        degrees = {a.task.request.id: a.degree for a in plan.assignments}
        assert degrees == {"urgent": 2, "loose": 1}

    def test_the_earliest_deadline_goes_first(self) -> None:
        later = a_ready("later", LONG, DIFFUSE, deadline_s=900.0)
        sooner = a_ready("sooner", LONG, DIFFUSE, sequence=1, deadline_s=800.0)
        plan = edf().plan([later, sooner], a_cluster())
        assert [a.task.request.id for a in plan.assignments] == ["sooner"]
        assert [h.task.request.id for h in plan.held] == ["later"]

    def test_a_narrow_one_may_start_while_a_wide_one_waits(self) -> None:
        wide = a_ready("wide", LONG, DIFFUSE, deadline_s=100.0)
        narrow = a_ready("narrow", SHORT, DIFFUSE, sequence=1)
        plan = edf().plan([wide, narrow], a_cluster(busy=["n0g0"]))
        assert [a.task.request.id for a in plan.assignments] == ["narrow"]

    def test_encode_and_decode_take_one_device(self) -> None:
        tasks = [a_ready("e"), a_ready("d", kind=DECODE, came_from=("n0g2", "n0g3"), sequence=1)]
        plan = edf().plan(tasks, a_cluster())
        assert {a.task.request.id: a.degree for a in plan.assignments} == {"e": 1, "d": 1}


class TestDeadlineRounds:
    def test_between_rounds_diffuses_wait_and_auxiliaries_start(self) -> None:
        tasks = [a_ready("e", arrival_s=0.3), a_ready("d", kind=DIFFUSE, sequence=1)]
        plan = rounds().plan(tasks, a_cluster(now_s=0.3))
        assert [a.task.request.id for a in plan.assignments] == ["e"]
        assert plan.next_decision_at_s == pytest.approx(1.0)

    def test_at_a_round_diffuses_start(self) -> None:
        dispatcher, task = rounds(), a_ready("r", kind=DIFFUSE)
        dispatcher.plan([task], a_cluster(now_s=0.3))
        plan = dispatcher.plan([task], a_cluster(now_s=1.0))
        assert [a.task.request.id for a in plan.assignments] == ["r"]
        assert plan.next_decision_at_s == pytest.approx(2.0)

    def test_there_are_no_rounds_without_work(self) -> None:
        assert rounds().plan([], a_cluster()).next_decision_at_s is None

    def test_the_degree_is_the_one_with_the_fewest_gpu_hours_that_is_on_time(self) -> None:
        busy = [d for d in device_ids(1) if d not in {"n0g0", "n0g1", "n0g2", "n0g3"}]
        task = a_ready("r", MIDDLE, DIFFUSE, deadline_s=15.0)
        [launch] = rounds().plan([task], a_cluster(busy=busy)).assignments
        assert launch.degree == 4

    def test_leftover_devices_widen_what_runs_at_its_boundary(self) -> None:
        view = a_cluster(busy=["n0g0"], running=(running("r", SHORT, ("n0g0",)),), now_s=10.0)
        [resize] = rounds().plan([], view).resizes
        assert (resize.task, resize.onward.degree) == ("r/diffuse", 2)

    def test_one_that_must_run_now_drains_a_node_of_what_can_wait(self) -> None:
        team = ("n0g0", "n0g1", "n0g2", "n0g3")
        victim = running("victim", MIDDLE, team, deadline_s=1e4)
        # 6 steps of 4.75 s at degree 8 and a decode of 10 s end 38.5 s after the boundary at 11.6 s.
        critical = a_ready("critical", LONG, DIFFUSE, deadline_s=10.0 + 41.0)
        dispatcher = rounds()
        view = a_cluster(busy=team, running=(victim,), now_s=10.0)
        plan = dispatcher.plan([critical], view)
        assert not plan.assignments
        assert [p.task for p in plan.pauses] == ["victim/diffuse"]
        assert [h.task.request.id for h in plan.held] == ["critical"]
        later = dispatcher.plan(
            [critical, a_ready("s", kind=DIFFUSE, sequence=2)], a_cluster(now_s=11.0, busy=team)
        )
        assert not later.assignments  # the node is kept for it
        free = dispatcher.plan([critical], a_cluster(now_s=12.0))
        assert [a.degree for a in free.assignments] == [8]

    def test_what_runs_is_left_alone_when_nobody_needs_its_devices(self) -> None:
        team = tuple(device_ids(1))
        late = running("late", LONG, team, deadline_s=11.0)
        waits = a_ready("waits", SHORT, DIFFUSE, deadline_s=1e4)
        plan = rounds().plan([waits], a_cluster(busy=team, running=(late,), now_s=10.0))
        assert (plan.pauses, plan.resizes) == ((), ())

    def test_its_length_is_the_mean_step_of_what_is_asked_for_at_most_a_second(self) -> None:
        images = CostModel(specs_of(PROFILE, [SD3]), PROFILE, learn=False)
        mix = Demand(
            (
                ClassDemand(SD3, Shape(512, 512), 20, 3.0),  # .059 s a step at its best degree
                ClassDemand(SD3, Shape(1024, 1024), 20, 1.0),  # .243 s
            )
        )
        assert round_s(mix, images) == pytest.approx((3 * 0.059 + 0.243) / 4)
        assert round_s(MIX, COST) == 1.0
