"""What one decision of the trident dispatcher does, verb by verb."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.types import (
    Assignment,
    ClusterView,
    DeviceId,
    DispatchPlan,
    RunningView,
    Shape,
    StageKind,
    StageTask,
)
from schedulers.dispatch.fairness import Accounts
from schedulers.dispatch.knobs import Knobs
from schedulers.dispatch.trident import TridentDispatcher
from tests.support.clusters import COST, LONG, MIDDLE, SHORT, a_cluster, a_ready

ENCODE, DIFFUSE, DECODE = StageKind
SHORT_S = 6 * 1.19  # on one device; published seconds per step


def a_diffuse(name: str, shape: Shape = SHORT, **changes: Any) -> StageTask:
    return a_ready(name, shape, DIFFUSE, **changes)


def underway(
    task: StageTask, team: list[str], *, started_s: float = 0.0, step: int = 0, at_s: float = 0.0
) -> RunningView:
    degree = len(team)
    run_s = 6 * COST.step_s(task.request.model, task.request.shape, degree)
    launch = Assignment(
        task=task,
        team=tuple(DeviceId(device) for device in team),
        expected_s=run_s,
        activation_bytes=0,
        why="",
    )
    return RunningView(
        assignment=launch,
        started_s=started_s,
        ends_s=started_s + run_s,
        step=step,
        step_at_s=at_s,
        is_changing=False,
    )


def running_on(
    *launches: RunningView, nodes: int = 1, now_s: float = 0.0, **more: Any
) -> ClusterView:
    """A cluster in which `launches` hold their teams, each until its own end."""
    view = a_cluster(nodes, now_s=now_s, running=launches, **more)
    ends = {device: run.ends_s for run in launches for device in run.assignment.team}
    devices = tuple(
        msgspec.structs.replace(seen, busy_until_s=ends.get(seen.info.id, seen.busy_until_s))
        for seen in view.devices
    )
    return msgspec.structs.replace(view, devices=devices)


def decide(tasks: list[StageTask], view: ClusterView, **knobs: Any) -> DispatchPlan:
    plain = {"scale_up": False} | knobs
    return TridentDispatcher(COST, Knobs(**plain)).plan(tasks, view)


def teams(plan: DispatchPlan) -> dict[str, int]:
    return {a.task.request.id: a.degree for a in plan.assignments}


class TestStarts:
    @pytest.mark.parametrize(("slack_s", "degree"), [(9.0, 1), (6.0, 2), (4.0, 4), (2.6, 8)])
    def test_a_diffuse_gets_the_least_degree_that_is_on_time(
        self, slack_s: float, degree: int
    ) -> None:
        plan = decide([a_diffuse("r", deadline_s=slack_s)], a_cluster())
        assert teams(plan) == {"r": degree}

    def test_a_narrow_diffuse_goes_where_it_fits_best(self) -> None:
        view = a_cluster(2, busy=[f"n1g{i}" for i in range(6)])
        [launch] = decide([a_diffuse("r")], view).assignments
        assert launch.team == ("n1g6",)

    def test_the_earlier_deadline_is_served_first(self) -> None:
        tasks = [a_diffuse("late", deadline_s=90.0), a_diffuse("soon", deadline_s=80.0, sequence=1)]
        plan = decide(tasks, a_cluster(busy=[f"n0g{i}" for i in range(7)]))
        assert teams(plan) == {"soon": 1}

    def test_first_come_first_served_if_deadlines_do_not_order(self) -> None:
        tasks = [
            a_diffuse("first", deadline_s=90.0),
            a_diffuse("second", deadline_s=80.0, arrival_s=1.0, sequence=1),
        ]
        view = a_cluster(busy=[f"n0g{i}" for i in range(7)], now_s=2.0)
        assert teams(decide(tasks, view, deadline_order=False)) == {"first": 1}

    def test_what_cannot_be_on_time_stands_behind_what_can(self) -> None:
        tasks = [a_diffuse("hopeless", deadline_s=1.0), a_diffuse("fine", sequence=1)]
        view = a_cluster(busy=[f"n0g{i}" for i in range(7)])
        assert teams(decide(tasks, view)) == {"fine": 1}

    def test_without_a_background_queue_the_hopeless_go_first_and_take_much(self) -> None:
        tasks = [a_diffuse("hopeless", deadline_s=1.0), a_diffuse("fine", sequence=1)]
        assert teams(decide(tasks, a_cluster(), background=False, preempt=False)) == {"hopeless": 8}

    def test_hopeless_requests_take_their_cheapest_degree(self) -> None:
        assert teams(decide([a_diffuse("r", MIDDLE, deadline_s=1.0)], a_cluster())) == {"r": 2}

    def test_it_waits_for_a_node_that_frees_a_sufficient_degree_in_time(self) -> None:
        ends_soon = underway(a_diffuse("other", MIDDLE), ["n0g0", "n0g1"], started_s=-15.0)
        view = running_on(ends_soon, busy=[f"n0g{i}" for i in range(3, 8)])
        plan = decide([a_diffuse("r", MIDDLE, deadline_s=30.0)], view)
        assert plan.assignments == ()
        assert "in time" in plan.held[0].reason

    def test_a_higher_priority_goes_first_whatever_the_deadlines(self) -> None:
        plain = a_diffuse("plain", deadline_s=20.0)
        vip = a_diffuse("vip", deadline_s=90.0, sequence=1)
        vip = msgspec.structs.replace(vip, request=msgspec.structs.replace(vip.request, priority=1))
        plan = decide([plain, vip], a_cluster(busy=[f"n0g{i}" for i in range(7)]))
        assert teams(plan) == {"vip": 1}

    def test_a_device_without_the_memory_is_no_candidate(self) -> None:
        view = a_cluster()
        small = [
            msgspec.structs.replace(d, capacity_bytes=20 * 10**9) if d.info.id != "n0g5" else d
            for d in view.devices
        ]
        plan = decide([a_diffuse("r")], msgspec.structs.replace(view, devices=tuple(small)))
        assert [a.team for a in plan.assignments] == [("n0g5",)]


class TestRefusals:
    def test_what_fits_nowhere_is_impossible_at_its_first_stage(self) -> None:
        [held] = decide([a_ready("r", LONG)], a_cluster(per_node=4)).held
        assert held.impossible
        assert "8 devices of one node" in held.reason
        assert "no node has more than 4" in held.reason

    def test_nothing_is_impossible_while_devices_are_missing(self) -> None:
        [launch] = decide([a_ready("r", LONG)], a_cluster(lost=["n0g7"])).assignments
        assert launch.task.request.id == "r"

    def test_late_requests_are_refused_only_if_asked(self) -> None:
        late = a_diffuse("r", deadline_s=1.0)
        assert decide([late], a_cluster()).held == ()
        [held] = decide([late], a_cluster(), refuse=True).held
        assert held.refused
        assert "after its deadline" in held.reason


class TestPreemption:
    def test_a_hopeless_diffuse_is_paused_for_one_that_would_be_late(self) -> None:
        hopeless = a_diffuse("hopeless", LONG, deadline_s=5.0)
        view = running_on(underway(hopeless, [f"n0g{i}" for i in range(8)]))
        urgent = a_diffuse("urgent", deadline_s=15.0, sequence=1)
        plan = decide([urgent], view)
        assert [pause.task for pause in plan.pauses] == [hopeless.id]
        assert "stopped on node n0" in plan.held[0].reason
        assert decide([urgent], view, preempt=False).pauses == ()

    def test_one_that_has_time_is_paused_one_that_has_not_goes_on(self) -> None:
        for deadline_s, paused in ((300.0, 1), (40.0, 0)):
            running = a_diffuse("running", LONG, deadline_s=deadline_s)
            view = running_on(underway(running, [f"n0g{i}" for i in range(8)]))
            plan = decide([a_diffuse("urgent", deadline_s=15.0, sequence=1)], view)
            assert len(plan.pauses) == paused

    def test_a_higher_priority_is_never_paused_for_a_lower_one(self) -> None:
        vip = a_diffuse("vip", LONG, deadline_s=300.0)
        vip = msgspec.structs.replace(vip, request=msgspec.structs.replace(vip.request, priority=1))
        view = running_on(underway(vip, [f"n0g{i}" for i in range(8)]))
        assert decide([a_diffuse("urgent", deadline_s=15.0, sequence=1)], view).pauses == ()

    def a_hold_for_one(self, dispatcher: TridentDispatcher) -> tuple[StageTask, StageTask]:
        """Let one device be given up for a request, and return who gives and who gets it."""
        hopeless = a_diffuse("hopeless", deadline_s=2.0)
        urgent = a_diffuse("urgent", deadline_s=12.9, sequence=1)
        view = running_on(underway(hopeless, ["n0g0"]))
        others = [msgspec.structs.replace(d, busy_until_s=99.0) for d in view.devices[1:]]
        view = msgspec.structs.replace(view, devices=(view.devices[0], *others))
        assert [p.task for p in dispatcher.plan([urgent], view).pauses] == [hopeless.id]
        return hopeless, urgent

    def test_what_was_given_up_is_kept_for_the_beneficiary(self) -> None:
        dispatcher = TridentDispatcher(COST, Knobs(scale_up=False))
        hopeless, urgent = self.a_hold_for_one(dispatcher)
        sooner = a_diffuse("sooner", deadline_s=12.5, sequence=2)
        view = a_cluster(busy=[f"n0g{i}" for i in range(1, 8)], now_s=1.19)
        assert list(teams(dispatcher.plan([hopeless, urgent, sooner], view))) == ["urgent"]

    def test_what_becomes_idle_beside_it_is_kept_for_nobody(self) -> None:
        dispatcher = TridentDispatcher(COST, Knobs(scale_up=False))
        _hopeless, urgent = self.a_hold_for_one(dispatcher)
        sooner = a_diffuse("sooner", deadline_s=12.5, sequence=2)
        view = a_cluster(busy=[f"n0g{i}" for i in range(7)], now_s=1.0)
        assert list(teams(dispatcher.plan([urgent, sooner], view))) == ["sooner"]

    def test_a_wide_team_that_was_stopped_for_one_device_leaves_room_for_others(self) -> None:
        hopeless = a_diffuse("hopeless", LONG, deadline_s=5.0)
        dispatcher = TridentDispatcher(COST, Knobs(scale_up=False))
        urgent = a_diffuse("urgent", deadline_s=15.0, sequence=1)
        dispatcher.plan([urgent], running_on(underway(hopeless, [f"n0g{i}" for i in range(8)])))
        other = a_diffuse("other", deadline_s=14.0, sequence=2)
        plan = dispatcher.plan([hopeless, urgent, other], a_cluster(now_s=4.75))
        assert set(teams(plan)) == {"urgent", "other"}

    def full_node(self) -> ClusterView:
        """A node of which one device is free at 1.14 s, the next at 7.14 s; all can wait."""
        return running_on(
            underway(a_diffuse("soon", sequence=90), ["n0g0"], started_s=-6.0, step=5, at_s=-0.05),
            underway(a_diffuse("short", sequence=91), ["n0g1"]),
            underway(a_diffuse("two", MIDDLE, sequence=92), ["n0g2", "n0g3"]),
            underway(a_diffuse("four", MIDDLE, sequence=93), [f"n0g{i}" for i in range(4, 8)]),
        )

    def test_two_do_not_wait_for_the_same_device(self) -> None:
        tasks = [a_diffuse(name, deadline_s=10.3, sequence=i) for i, name in enumerate("ab")]
        for claim in (False, True):
            plan = decide(tasks, self.full_node(), claim=claim, wait_guard=0.0)
            assert len(plan.pauses) == claim
            assert [held.task.request.id for held in plan.held] == ["a", "b"]
            assert ("stopped" in plan.held[1].reason) is claim

    def test_one_that_waits_with_nothing_to_spare_lets_others_pause_in_good_time(self) -> None:
        for deadline_s, guard, pauses in ((9.6, 0.25, 1), (9.6, 0.0, 0), (10.3, 0.25, 0)):
            task = a_diffuse("r", deadline_s=deadline_s)
            assert len(decide([task], self.full_node(), wait_guard=guard).pauses) == pauses

    def test_half_a_team_is_taken_if_that_is_enough_and_allowed(self) -> None:
        running = a_diffuse("running", MIDDLE, deadline_s=300.0)
        view = running_on(underway(running, [f"n0g{i}" for i in range(8)]))
        urgent = a_diffuse("urgent", deadline_s=4.3, sequence=1)
        plan = decide([urgent], view, demote=True)
        assert [len(r.onward.team) for r in plan.resizes] == [4]
        assert plan.pauses == ()


class TestGrowth:
    def test_a_fresh_launch_takes_what_nobody_else_can_use(self) -> None:
        assert teams(decide([a_diffuse("r")], a_cluster(), scale_up=True)) == {"r": 8}

    def test_a_running_diffuse_grows_at_its_boundary(self) -> None:
        view = running_on(underway(a_diffuse("r", MIDDLE), ["n0g0", "n0g1"]))
        [resize] = decide([], view, scale_up=True).resizes
        assert resize.onward.team == ("n0g0", "n0g1", "n0g2", "n0g3")
        assert decide([], view, scale_up=True, resize=False).resizes == ()

    def test_growth_that_saves_too_little_is_left_alone(self) -> None:
        view = running_on(underway(a_diffuse("r"), ["n0g0"], step=5, at_s=5.95), now_s=5.95)
        assert decide([], view, scale_up=True).resizes == ()


class TestContention:
    BUSY = tuple(f"n0g{i}" for i in range(2, 8))

    def waiting(self, count: int) -> list[StageTask]:
        """The first could only be on time at degree 4, which wastes half of the devices' time."""
        others = [a_diffuse(f"o{i}", deadline_s=90.0, sequence=i) for i in range(1, count)]
        return [a_diffuse("tight", deadline_s=6.0), *others]

    def test_wasteful_degrees_are_off_while_more_wait_than_devices_are_idle(self) -> None:
        view = a_cluster(busy=self.BUSY)
        assert teams(decide(self.waiting(1), view, most_waste=1.2)) == {"tight": 2}
        crowded = teams(decide(self.waiting(3), view, most_waste=1.2))
        assert crowded == {"o1": 1, "o2": 1}

    def test_wasteful_diffuses_give_devices_back_if_asked(self) -> None:
        view = running_on(underway(a_diffuse("wide"), ["n0g0", "n0g1", "n0g2", "n0g3"]))
        view = msgspec.structs.replace(
            view,
            devices=tuple(
                msgspec.structs.replace(d, busy_until_s=d.busy_until_s or 9.0) for d in view.devices
            ),
        )
        plan = decide(self.waiting(3), view, most_waste=1.2, shrink=True, preempt=False)
        assert [len(resize.onward.team) for resize in plan.resizes] == [1]
        assert decide(self.waiting(3), view, most_waste=1.2, preempt=False).resizes == ()


class TestAuxiliaries:
    POOLS = {"n1g7": DECODE, "n1g6": ENCODE}  # noqa: RUF012 - a constant

    def test_encodes_run_together_in_their_pool(self) -> None:
        tasks = [a_ready(f"r{i}", sequence=i) for i in range(10)]
        [launch] = decide(tasks, a_cluster(2, pools=self.POOLS)).assignments
        assert (launch.team, len(launch.tasks)) == (("n1g6",), 8)

    def test_an_encode_that_failed_in_a_batch_runs_alone(self) -> None:
        tasks = [a_ready("again", attempt=2, alone=True), a_ready("r", sequence=1)]
        [launch] = decide(tasks, a_cluster(2, pools=self.POOLS)).assignments
        assert [task.request.id for task in launch.tasks] == ["again"]

    def test_a_decode_goes_to_its_pool_and_spills_when_that_is_behind(self) -> None:
        decode = a_ready("d", LONG, DECODE, came_from=("n0g3",))
        idle = decide([decode], a_cluster(2, pools=self.POOLS))
        assert [a.team for a in idle.assignments] == [("n1g7",)]
        behind = a_cluster(2, pools=self.POOLS, busy=["n1g7"])  # for 5 s, half of this decode
        waiting = decide([decode], behind)
        assert [h.task.id for h in waiting.held] == [decode.id]
        small = a_ready("d", SHORT, DECODE, came_from=("n0g3",))
        spilled = decide([small], behind)
        assert [a.team for a in spilled.assignments] == [("n0g3",)]
        assert decide([small], behind, spill=False).assignments == ()

    def test_without_a_pool_a_request_begins_anywhere_and_preempts_if_it_must(self) -> None:
        [launch] = decide([a_ready("r")], a_cluster()).assignments
        assert launch.degree == 1
        hopeless = a_diffuse("hopeless", LONG, deadline_s=5.0)
        view = running_on(underway(hopeless, [f"n0g{i}" for i in range(8)]))
        urgent = a_ready("urgent", deadline_s=15.0, sequence=1)
        assert [pause.task for pause in decide([urgent], view).pauses] == [hopeless.id]


class TestReservations:
    def test_a_wide_request_holds_a_node_only_if_asked(self) -> None:
        blockers = [
            underway(a_diffuse(f"b{n}", deadline_s=1e6, sequence=n), [f"n{n}g0"]) for n in range(4)
        ]
        view = running_on(*blockers, nodes=4)
        wide = a_diffuse("wide", LONG, deadline_s=200.0, sequence=9)
        narrow = a_diffuse("narrow", deadline_s=300.0, sequence=10)
        for reserve in (False, True):
            dispatcher = TridentDispatcher(COST, Knobs(scale_up=False, reserve=reserve))
            dispatcher.plan([wide], view)
            assert bool(dispatcher._holds) is reserve
            launched = dispatcher.plan([wide, narrow], view).assignments
            assert [a.task.request.id for a in launched] == ["narrow"]


class TestFairness:
    def test_a_tenant_alone_is_never_pushed_back(self) -> None:
        accounts = Accounts({}, 600.0)
        accounts.charge("a", 1e6, 0.0)
        assert accounts.delays_s(["a"], 8, 0.0) == {"a": 0.0}

    def test_a_tenant_that_is_ahead_stands_later_by_seconds_of_the_cluster(self) -> None:
        accounts = Accounts({"b": 2.0}, 600.0)
        accounts.charge("a", 80.0, 0.0)
        accounts.charge("b", 80.0, 0.0)
        assert accounts.delays_s(["a", "b"], 8, 0.0) == {"a": 5.0, "b": 0.0}

    def test_what_was_used_is_forgotten(self) -> None:
        accounts = Accounts({}, 600.0)
        accounts.charge("a", 80.0, 0.0)
        accounts.charge("b", 0.0, 0.0)
        assert accounts.delays_s(["a", "b"], 8, 600.0)["a"] == pytest.approx(5.0)

    def test_the_greedy_tenant_waits_when_both_want_the_last_device(self) -> None:
        dispatcher = TridentDispatcher(COST, Knobs(scale_up=False))
        view = a_cluster(busy=[f"n0g{i}" for i in range(7)])

        def of(tenant: str, name: str, sequence: int) -> StageTask:
            task = a_diffuse(name, deadline_s=500.0 + sequence, sequence=sequence)
            return msgspec.structs.replace(
                task, request=msgspec.structs.replace(task.request, tenant=tenant)
            )

        for i in range(3):
            assert teams(dispatcher.plan([of("greedy", f"g{i}", i)], view)) == {f"g{i}": 1}
        plan = dispatcher.plan([of("greedy", "g9", 3), of("modest", "m", 4)], view)
        assert teams(plan) == {"m": 1}


class TestElders:
    def test_an_old_late_request_goes_first_if_the_bound_is_on(self) -> None:
        old = a_diffuse("old", deadline_s=10.0)
        fresh = a_diffuse("fresh", arrival_s=990.0, deadline_s=1100.0, sequence=1)
        view = a_cluster(busy=[f"n0g{i}" for i in range(7)], now_s=1000.0)
        assert teams(decide([old, fresh], view)) == {"fresh": 1}
        assert teams(decide([old, fresh], view, elders_per_16_nodes=1)) == {"old": 1}

    def test_an_elder_without_room_keeps_a_node_until_it_starts(self) -> None:
        dispatcher = TridentDispatcher(COST, Knobs(scale_up=False, elders_per_16_nodes=1))
        wide = a_diffuse("wide", LONG, deadline_s=10.0)

        def fresh(now_s: float) -> StageTask:
            slack = {"arrival_s": now_s, "deadline_s": now_s + 99.0}
            return a_diffuse("fresh", MIDDLE, **slack, sequence=1)

        full = a_cluster(busy=["n0g0"], now_s=1000.0)
        assert dispatcher.plan([wide, fresh(1000.0)], full).assignments == ()
        overdue = a_cluster(busy=["n0g0"], now_s=1100.0)  # what runs there takes its time
        assert dispatcher.plan([wide, fresh(1100.0)], overdue).assignments == ()
        empty = a_cluster(now_s=1200.0)
        assert teams(dispatcher.plan([wide, fresh(1200.0)], empty)) == {"wide": 8}

    def test_an_elder_gives_up_a_node_that_has_lost_a_device(self) -> None:
        dispatcher = TridentDispatcher(COST, Knobs(scale_up=False, elders_per_16_nodes=1))
        wide = a_diffuse("wide", LONG, deadline_s=10.0)
        fresh = a_diffuse("fresh", arrival_s=990.0, deadline_s=1100.0, sequence=1)
        busy = ["n0g0", "n1g0", "n1g1"]
        dispatcher.plan([wide], a_cluster(2, busy=busy, now_s=1000.0))
        assert set(dispatcher._holds) == {"n0"}
        plan = dispatcher.plan([wide, fresh], a_cluster(2, busy=busy, lost=["n0g7"], now_s=1001.0))
        assert set(dispatcher._holds) == {"n1"}
        assert [a.team[0][:2] for a in plan.assignments] == ["n0"]

    def test_an_elder_that_runs_is_not_paused(self) -> None:
        old = a_diffuse("old", LONG, deadline_s=10.0)
        team = [f"n0g{i}" for i in range(8)]
        view = running_on(underway(old, team, started_s=999.0, at_s=999.0), now_s=1000.0)
        urgent = a_ready("urgent", arrival_s=1000.0, deadline_s=1015.0, sequence=1)
        assert [pause.task for pause in decide([urgent], view).pauses] == [old.id]
        assert decide([urgent], view, elders_per_16_nodes=1).pauses == ()


def test_any_number_of_sizes_is_kept_in_bounded_memory() -> None:
    dispatcher, view = TridentDispatcher(COST), a_cluster()
    sizes = [Shape(side, 432, 17) for side in range(16, 1516)]
    for first in range(0, len(sizes), 100):
        some = [a_diffuse(str(shape), shape) for shape in sizes[first : first + 100]]
        dispatcher.plan(some, view)
    assert len(dispatcher._impossible) <= 1024
    assert len(dispatcher._curves._kept) <= 1024
