"""The planner's integers: shares, balance, pools, packing, least-cost seats."""

from __future__ import annotations

from collections import Counter

import pytest

from engine.types import DeviceId, ModelId, StageKey, StageKind
from schedulers.planner.matching import least_cost
from schedulers.planner.packing import Recipe, Share, lay_out, seat
from schedulers.planner.roster import Slot
from schedulers.planner.split import PoolSizes, apportioned, balanced, in_blocks, pool_sizes

M = ModelId("m")
DIFFUSE = frozenset({StageKey(M, StageKind.DIFFUSE)})
DECODE = frozenset({StageKey(M, StageKind.DECODE)})
ENCODE = frozenset({StageKey(M, StageKind.ENCODE)})
WEIGHTS = {StageKey(M, kind): 100 for kind in StageKind}


class TestShares:
    """Devices in proportion to work."""

    def test_the_largest_remainder_gets_the_last_device(self) -> None:
        assert apportioned(10, [1.0, 1.0, 1.2], [0, 0, 0]) == [3, 3, 4]

    def test_a_rare_type_gets_its_floor_and_the_rest_is_shared_anew(self) -> None:
        assert apportioned(16, [99.0, 1.0], [1, 8]) == [8, 8]

    def test_all_at_their_floors_leave_the_spare_to_the_largest(self) -> None:
        assert apportioned(10, [0.0, 0.0], [1, 1]) == [5, 5]
        assert apportioned(9, [1.0, 3.0], [4, 4]) == [4, 5]

    def test_floors_beyond_the_total_are_impossible(self) -> None:
        assert apportioned(7, [1.0], [8]) is None

    def test_wide_types_get_whole_blocks(self) -> None:
        assert in_blocks([53, 75], [8, 1], [8, 1]) == [56, 72]
        assert in_blocks([11, 5], [8, 2], [8, 2]) == [8, 8]

    def test_counts_stay_where_the_narrowest_would_fall_below_its_floor(self) -> None:
        assert in_blocks([13, 3], [8, 2], [8, 2]) == [13, 3]


class TestSplit:
    """The slowest stage as fast as it can be."""

    def test_speeds_are_balanced(self) -> None:
        assert balanced(12, [1.0, 2.0, 4.0], [1, 1, 1]) == [7, 3, 2]

    def test_a_stage_without_work_keeps_its_floor(self) -> None:
        assert balanced(8, [1.0, float("inf")], [1, 1]) == [7, 1]

    def test_too_few_devices_are_no_split(self) -> None:
        assert balanced(1, [1.0, 1.0], [1, 1]) is None

    def test_pools_take_what_their_demand_asks(self) -> None:
        sizes = pool_sizes(total=128, diffuse=98, encode=0.21, decode=3.7, headroom=(1.4, 1.25))
        assert sizes == PoolSizes(encode=1, decode=5)

    def test_an_overloaded_cluster_is_balanced_without_headroom(self) -> None:
        sizes = pool_sizes(total=128, diffuse=165, encode=0.3, decode=8.8, headroom=(1.4, 1.25))
        assert sizes == PoolSizes(encode=1, decode=7)

    def test_no_work_needs_no_pool(self) -> None:
        assert pool_sizes(total=4, diffuse=2, encode=0, decode=0, headroom=(1.4, 1.25)).total == 0


class TestPacking:
    """Pools together, primaries in blocks, loads few."""

    def test_pools_leave_whole_nodes_to_wide_primaries(self) -> None:
        recipe = Recipe("r", (Share(DIFFUSE, 18, 8),), (Share(DECODE, 5), Share(ENCODE, 1)))
        layout = lay_out(recipe, [8, 8, 8], broken_first=True)
        assert sorted(node[DIFFUSE] for node in layout.nodes) == [2, 8, 8]

    def test_a_broken_node_takes_the_pools_if_asked(self) -> None:
        recipe = Recipe("r", (Share(DIFFUSE, 12, 8),), (Share(DECODE, 3),))
        broken = lay_out(recipe, [8, 7], broken_first=True)
        whole = lay_out(recipe, [8, 7], broken_first=False)
        assert [node[DECODE] for node in broken.nodes] == [0, 3]
        assert [node[DECODE] for node in whole.nodes] == [3, 0]

    def test_narrow_primaries_fill_what_wide_ones_leave(self) -> None:
        narrow = DIFFUSE | ENCODE
        recipe = Recipe("r", (Share(narrow, 6, 1), Share(DIFFUSE, 8, 8)), (Share(DECODE, 2),))
        layout = lay_out(recipe, [8, 8], broken_first=True)
        assert [dict(node) for node in layout.nodes] == [{DECODE: 2, narrow: 6}, {DIFFUSE: 8}]

    def test_a_node_that_has_the_pool_keeps_it(self) -> None:
        slots = tuple(
            Slot(
                DeviceId(f"{node}{g}"),
                node,
                1000,
                resident=DECODE if node == "b" else DIFFUSE,
                desired=DECODE if node == "b" else DIFFUSE,
            )
            for node in "abc"
            for g in range(2)
        )
        recipe = Recipe("r", (Share(DIFFUSE, 4, 2),), (Share(DECODE, 2),))
        seating = seat(lay_out(recipe, [2, 2, 2], broken_first=True), slots, WEIGHTS)
        assert seating.load_bytes == 0
        assert {d for d, role in seating.roles.items() if role == DECODE} == {"b0", "b1"}

    def test_devices_without_a_role_are_left_empty(self) -> None:
        slots = (Slot(DeviceId("a"), "n", 1000), Slot(DeviceId("b"), "n", 1000))
        layout = lay_out(Recipe("r", (Share(DIFFUSE, 1),)), [2], broken_first=True)
        assert Counter(seat(layout, slots, WEIGHTS).roles.values()) == {DIFFUSE: 1, frozenset(): 1}


class TestSeats:
    """The transportation problem."""

    def test_rows_go_where_they_cost_least_together(self) -> None:
        assert least_cost([[0, 10], [0, 1]], [1, 1]) == [0, 1]
        assert least_cost([[1, 0, 9], [0, 9, 9], [0, 1, 9]], [1, 1, 1]) in ([1, 0, 2], [1, 2, 0])

    def test_seats_and_rows_must_agree(self) -> None:
        with pytest.raises(ValueError, match="2 rows do not fill 1 seats"):
            least_cost([[0], [0]], [1])
