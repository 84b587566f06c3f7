"""Launches on random, overlapping teams of which members fail, die, go deaf or are cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import (
    EngineError,
    RequestCancelledError,
    StageFailedError,
    TeamBrokenError,
    WorkerLostError,
)
from engine.executors import groups
from engine.executors.groups import GroupTable
from engine.executors.launches import STRAGGLE_S, Launches, blame
from engine.messages import CancelTask, JoinGroup
from engine.teams import Teams
from engine.types import (
    Assignment,
    DeviceId,
    ModelId,
    NodeId,
    StageKey,
    StageKind,
    StageTask,
    TaskId,
)
from schedulers.sim.clock import run_virtual
from tests.support.builders import a_request
from tests.support.team_twin import Fate, TwinNode

DEVICES = tuple(DeviceId(f"cpu:{i}") for i in range(8))
A_TEAM = st.sets(st.sampled_from(DEVICES), min_size=1, max_size=8).map(
    lambda team: tuple(sorted(team, reverse=True))
)
Wish = tuple[tuple[DeviceId, ...], float, float | None]  # team, asked for at, cancelled after
WISHES = st.lists(
    st.tuples(A_TEAM, st.floats(0, 20), st.none() | st.floats(0, 6)), min_size=1, max_size=12
)
FATES = st.dictionaries(
    st.tuples(st.integers(1, 12), st.sampled_from(DEVICES)), st.sampled_from(Fate), max_size=6
)
Outcome = str


def an_assignment(number: int, team: tuple[DeviceId, ...]) -> Assignment:
    task = StageTask(
        id=TaskId(f"task-{number}"), request=a_request(), node=NodeId("diffuse-0"),
        stage=StageKey(ModelId("tiny"), StageKind.DIFFUSE), image_index=0,
        inputs=(), sequence=0, attempt=1, ready_s=0.0,
    )  # fmt: skip
    return Assignment(task=task, team=team, expected_s=1.0, activation_bytes=0, why="")


class World:
    """A node of twins with its launches, and the ledger of teams."""

    def __init__(self, fates: dict[tuple[int, DeviceId], Fate]) -> None:
        self.node = TwinNode(DEVICES, lambda launch, d: fates.get((launch, d), Fate.FINE))
        self.groups = GroupTable(self.node, DEVICES)
        self.launches = Launches(self.node, self.groups)
        self.node.came_up, self.node.went_down = self.groups.came_up, self.groups.went_down
        self.teams, self.freed = Teams(), asyncio.Condition()
        self.outcomes: list[Outcome] = []
        for device in DEVICES:
            self.node.start(device)

    async def wish(self, number: int, wish: Wish, *, exclusive: bool) -> None:
        team, at_s, cancel_s = wish
        assignment = an_assignment(number, team)
        await asyncio.sleep(at_s)
        if exclusive:
            async with self.freed:
                await self.freed.wait_for(lambda: not self.teams.busy.intersection(team))
                self.teams.acquire(assignment.task.id, team, 0.0)
        cancelling = asyncio.create_task(self._cancel(assignment, cancel_s))
        try:
            reports = await self.launches.run(assignment)
            assert [report.task for report in reports] == [assignment.task.id]
            self.outcomes.append("done")
        except EngineError as error:
            self.outcomes.append(error.code)
        finally:
            cancelling.cancel()
            self.groups.check_integrity()
            async with self.freed:
                self.teams.release(assignment.task.id)
                self.freed.notify_all()

    async def _cancel(self, assignment: Assignment, after_s: float | None) -> None:
        if after_s is not None:
            await asyncio.sleep(after_s)
            leader = self.groups.in_order(assignment.team)[0]
            self.node.send(leader, CancelTask(assignment.task.id))


async def live(
    wishes: list[Wish], fates: dict[tuple[int, DeviceId], Fate], *, exclusive: bool
) -> World:
    world = World(fates)
    # a deadlock among twins ends this with `DeadlockError`; a deaf one lasts an hour
    async with asyncio.timeout(4000 * len(wishes)):
        await asyncio.gather(
            *(world.wish(i, wish, exclusive=exclusive) for i, wish in enumerate(wishes))
        )
    world.teams.check_integrity()
    assert not world.teams.busy
    for launched in world.node.obeyed.values():
        assert launched == sorted(launched)  # every member obeys in the order of the launches
    world.node.close()
    return world


@settings(max_examples=25, deadline=None)
@given(wishes=WISHES, fates=FATES)
def test_every_launch_ends_whatever_happens_and_its_team_is_free(
    wishes: list[Wish], fates: dict[tuple[int, DeviceId], Fate]
) -> None:
    world = run_virtual(live(wishes, fates, exclusive=True))
    assert len(world.outcomes) == len(wishes)
    if not any(fate is not Fate.FINE for fate in fates.values()):
        assert set(world.outcomes) <= {"done", "cancelled"}


@settings(max_examples=25, deadline=None)
@given(wishes=WISHES, fates=FATES)
def test_overlapping_teams_that_queue_on_their_members_cannot_wait_for_each_other(
    wishes: list[Wish], fates: dict[tuple[int, DeviceId], Fate]
) -> None:
    world = run_virtual(live(wishes, fates, exclusive=False))
    assert len(world.outcomes) == len(wishes)


def one_launch(fates: dict[DeviceId, Fate], check: Callable[[World, float], None]) -> Outcome:
    async def scenario() -> Outcome:
        world = World({(1, device): fate for device, fate in fates.items()})
        await world.wish(0, (DEVICES[:4], 0.0, None), exclusive=True)
        check(world, asyncio.get_running_loop().time())
        world.node.close()
        return world.outcomes[0]

    return run_virtual(scenario())


def ends_at_once(world: World, now_s: float) -> None:
    assert not world.node.killed
    assert now_s < 3.0


def test_the_others_fail_with_a_member_and_its_error_is_told() -> None:
    assert one_launch({DEVICES[2]: Fate.FAILS}, ends_at_once) == StageFailedError.code
    assert one_launch({DEVICES[0]: Fate.DIES}, ends_at_once) == WorkerLostError.code


def test_a_member_that_goes_on_without_its_team_is_killed() -> None:
    def killed(world: World, now_s: float) -> None:
        assert world.node.killed == [DEVICES[1]]
        assert now_s < STRAGGLE_S + 3.0

    fates = {DEVICES[1]: Fate.DEAF, DEVICES[3]: Fate.FAILS}
    assert one_launch(fates, killed) == StageFailedError.code


def test_who_died_is_told_although_it_is_back_before_a_deaf_peer_is_killed() -> None:
    async def scenario() -> tuple[DeviceId, ...]:
        fates = {(1, DEVICES[1]): Fate.DEAF, (1, DEVICES[2]): Fate.DIES}
        world = World(fates)
        with pytest.raises(WorkerLostError) as error:
            await world.launches.run(an_assignment(0, DEVICES[:4]))
        assert world.node.is_up(DEVICES[2])
        assert world.node.killed == [DEVICES[1]]
        world.node.close()
        return error.value.devices

    assert run_virtual(scenario()) == (DEVICES[2],)


def test_the_same_team_works_again_after_it_broke() -> None:
    async def scenario() -> list[Outcome]:
        world = World({(1, DEVICES[1]): Fate.FAILS, (2, DEVICES[0]): Fate.DIES})
        for number, at_s in enumerate((0.0, 0.0, 10.0)):
            await world.wish(number, (DEVICES[:2], at_s, None), exclusive=True)
        world.node.close()
        return world.outcomes

    assert run_virtual(scenario()) == [StageFailedError.code, WorkerLostError.code, "done"]


def test_cancelling_frees_all_members_at_their_next_step_and_keeps_their_group() -> None:
    async def scenario() -> tuple[list[Outcome], float]:
        world = World({})
        await world.wish(0, (DEVICES[:4], 0.0, 1.5), exclusive=True)
        now_s = asyncio.get_running_loop().time()
        before = world.groups.seats(DEVICES[:4])
        await world.wish(1, (DEVICES[:4], 0.0, None), exclusive=True)
        assert world.groups.seats(DEVICES[:4]) == before
        world.node.close()
        return world.outcomes, now_s

    outcomes, now_s = run_virtual(scenario())
    assert outcomes == [RequestCancelledError.code, "done"]
    assert now_s == 2.0


class Post:
    """Counts who is told to meet in a group."""

    def __init__(self) -> None:
        self.told: list[DeviceId] = []

    def send(self, device: DeviceId, message: object) -> None:
        if isinstance(message, JoinGroup):
            self.told.append(device)

    interrupt = send


def test_teams_wider_than_is_wanted_meet_at_their_first_launch() -> None:
    post = Post()
    table = GroupTable(post, DEVICES, widest=1)
    for device in DEVICES:
        table.came_up(device)
    assert post.told == []
    assert table.seats(DEVICES[:2]) == table.seats(DEVICES[:2])
    assert post.told == list(DEVICES[:2])
    table.check_integrity()


def test_only_so_many_odd_groups_are_kept_beside_the_aligned_ones() -> None:
    async def scenario() -> None:
        world = World({})
        aligned = world.groups.seats(DEVICES[4:6])
        for i in range(1, len(DEVICES)):
            for j in range(i):
                world.groups.seats((DEVICES[j], DEVICES[i]))
                world.groups.check_integrity()
        assert world.groups.seats(DEVICES[4:6]) == aligned
        world.node.close()

    assert groups.MOST_HOT < 28
    run_virtual(scenario())


def test_what_a_launch_ends_with_is_the_cause_and_not_what_it_caused() -> None:
    errors = [
        RequestCancelledError("c"), TeamBrokenError("b"), WorkerLostError("a"),
        StageFailedError("x", retryable=True), KeyError("bug"),
    ]  # fmt: skip
    assert sorted(errors, key=blame) == errors[::-1]
