"""Which waiting requests share the denoise steps of one that is started, and which do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from engine.types import Assignment, SavedLatent, Shape, StageKind, StageTask
from schedulers.cost import CostModel
from schedulers.dispatch.knobs import Knobs
from schedulers.dispatch.trident import TridentDispatcher
from tests.support.clusters import SHORT, SPECS, a_cluster, a_ready, batched

ENCODE, DIFFUSE, DECODE = StageKind
SMALL = Shape(768, 432, 33)


def launches(
    tasks: Sequence[StageTask], *, times: float = 1.6, most: int = 4, **cluster: Any
) -> list[Assignment]:
    """Return what is launched of waiting tasks on one device whose batches of four take `times`."""
    cost = CostModel(SPECS, batched(times, DIFFUSE), learn=False)
    dispatcher = TridentDispatcher(cost, Knobs(step_batch=most, merge=True))
    view = a_cluster(**({"per_node": 1} | cluster))
    plan = dispatcher.plan(tasks, view)
    named = [task.id for launch in plan.assignments for task in launch.tasks]
    named += [held.task.id for held in plan.held]
    assert sorted(named) == sorted(task.id for task in tasks)  # each has one fate
    return list(plan.assignments)


def waiting(count: int, kind: StageKind = DIFFUSE, **changes: Any) -> list[StageTask]:
    return [a_ready(f"r{n}", kind=kind, sequence=n, **changes) for n in range(count)]


def sizes(made: Sequence[Assignment]) -> list[int]:
    return [len(launch.tasks) for launch in made]


def test_none_share_unless_the_knob_says_so() -> None:
    assert sizes(launches(waiting(3), most=1)) == [1]


def test_as_many_as_the_knob_allows_share_one_launch() -> None:
    assert sizes(launches(waiting(6))) == [4]
    assert sizes(launches(waiting(6), most=2)) == [2]


def test_each_takes_a_device_of_its_own_while_there_is_one() -> None:
    assert sizes(launches(waiting(2), per_node=2)) == [1, 1]
    assert sizes(launches(waiting(4), per_node=2)) == [3, 1]


def test_the_launch_is_expected_to_take_what_its_batch_takes() -> None:
    [alone] = launches(waiting(1))
    [shared] = launches(waiting(4))
    assert shared.expected_s > 1.5 * alone.expected_s
    assert shared.expected_s < 1.7 * alone.expected_s


def test_a_batch_that_saves_nothing_is_not_made() -> None:
    assert sizes(launches(waiting(4), times=3.9)) == [1]


def test_only_what_is_alike_shares() -> None:
    first, *_ = waiting(1)
    assert sizes(launches([first, a_ready("other", SMALL, DIFFUSE, sequence=1)])) == [1]
    assert sizes(launches([first, a_ready("other", SHORT, ENCODE, sequence=1)])) == [1]
    fewer = a_ready("fewer", kind=DIFFUSE, sequence=1)
    fewer = msgspec.structs.replace(fewer, request=msgspec.structs.replace(fewer.request, steps=3))
    assert sizes(launches([first, fewer])) == [1]


def test_what_failed_was_paused_or_is_watched_runs_by_itself() -> None:
    first, *_ = waiting(1)
    second = a_ready("second", kind=DIFFUSE, sequence=1)
    watched = msgspec.structs.replace(second.request, previews=2)
    for changes in (
        {"alone": True},
        {"saved": SavedLatent(2, None)},  # type: ignore[arg-type] # nobody reads it here
        {"request": watched},
    ):
        assert sizes(launches([first, msgspec.structs.replace(second, **changes)])) == [1]


def test_nobody_is_made_late_for_a_batch() -> None:
    [alone] = launches(waiting(1))
    first, *_ = waiting(1, deadline_s=1.2 * alone.expected_s + 1.0)
    assert sizes(launches([first, *waiting(3)[1:]])) == [1]
    assert sizes(launches([first, *waiting(3)[1:]], times=1.01)) == [3]


def test_encodes_share_a_launch_so_that_their_diffuses_can_and_are_not_merged_then() -> None:
    [launch] = launches(waiting(4, ENCODE))
    assert len(launch.tasks) == 4
    assert launch.then == ()
    [alone] = launches(waiting(1, ENCODE))
    assert alone.then


def decodes(
    tasks: Sequence[StageTask], *, times: float = 1.6, most: int = 4, **cluster: Any
) -> list[Assignment]:
    """Return what is launched of waiting decodes whose batches of four take `times`."""
    cost = CostModel(SPECS, batched(times, DECODE), learn=False)
    dispatcher = TridentDispatcher(cost, Knobs(decode_batch=most))
    plan = dispatcher.plan(tasks, a_cluster(**({"per_node": 1} | cluster)))
    named = [task.id for launch in plan.assignments for task in launch.tasks]
    named += [held.task.id for held in plan.held]
    assert sorted(named) == sorted(task.id for task in tasks)
    return list(plan.assignments)


class TestDecodes:
    """Decodes that find no idle device ride along with one that has found one."""

    def test_as_many_as_the_knob_allows_share_one_launch(self) -> None:
        assert sizes(decodes(waiting(6, DECODE))) == [4]
        assert sizes(decodes(waiting(6, DECODE), most=1)) == [1]

    def test_each_takes_a_device_of_its_own_while_there_is_one(self) -> None:
        assert sizes(decodes(waiting(3, DECODE), per_node=4)) == [1, 1, 1]

    def test_those_that_wait_for_their_pool_share_its_device(self) -> None:
        pools = {"n0g7": DECODE}
        busy = [f"n0g{n}" for n in range(7)]
        [launch] = decodes(waiting(3, DECODE), per_node=8, pools=pools, busy=busy)
        assert (launch.team, len(launch.tasks)) == (("n0g7",), 3)

    def test_a_batch_that_saves_nothing_is_not_made(self) -> None:
        assert sizes(decodes(waiting(4, DECODE), times=3.9)) == [1]

    def test_only_one_size_is_decoded_together(self) -> None:
        first, *_ = waiting(1, DECODE)
        assert sizes(decodes([first, a_ready("other", SMALL, DECODE, sequence=1)])) == [1]

    def test_one_that_failed_is_decoded_alone(self) -> None:
        first, second = waiting(2, DECODE)
        assert sizes(decodes([first, msgspec.structs.replace(second, alone=True)])) == [1]

    def test_nobody_is_made_late_for_a_batch(self) -> None:
        [alone] = decodes(waiting(1, DECODE))
        first, *_ = waiting(1, DECODE, deadline_s=1.1 * alone.expected_s)
        assert sizes(decodes([first, *waiting(3, DECODE)[1:]])) == [1]
        assert sizes(decodes([first, *waiting(3, DECODE)[1:]], times=1.01)) == [3]
