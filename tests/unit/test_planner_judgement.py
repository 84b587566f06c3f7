"""What placements sustain, which replicas classes need, and which switches are worth it."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest

from engine.types import DeviceId, ModelId, Shape, StageKey
from schedulers.planner import Demand, PlacementError, PlannerKnobs, check_integrity
from schedulers.planner.capacity import Balance, sustained
from schedulers.planner.paper import paper_recipe
from schedulers.planner.replicas import Memory, Role, VirtualReplica, Wanted, price_all, wanted
from schedulers.planner.roster import Roster, Slot
from schedulers.planner.switching import Loads, extra_loads, weigh
from tests.support.planning import (
    COG,
    FLUX,
    GB,
    HUNYUAN,
    L20_BYTES,
    SD3,
    C,
    D,
    E,
    L20Cost,
    a_cluster,
    even,
    view_of,
    weight_bytes,
)

KNOBS = PlannerKnobs()


def memory_of(*models: ModelId, capacity: int = L20_BYTES, widest: int = 8) -> Memory:
    return Memory(weight_bytes(*models), capacity, widest)


def classes_of(demand: Demand, memory: Memory) -> tuple[Wanted, ...]:
    return wanted(price_all(demand, L20Cost()), memory)


def role(model: ModelId, *kinds: str) -> Role:
    letters = {"E": E, "D": D, "C": C}
    return frozenset(StageKey(model, letters[kind]) for kind in kinds)


class TestOptimalReplica:
    """The first replica that memory allows."""

    @pytest.mark.parametrize(
        ("model", "shape", "capacity_gb", "replica", "degree"),
        [
            (COG, Shape(1360, 768, 81), 48, VirtualReplica.V0, 8),
            (HUNYUAN, Shape(544, 960, 17), 48, VirtualReplica.V1, 1),
            (SD3, Shape(128, 128), 13, VirtualReplica.V1, 1),
            (COG, Shape(432, 768, 17), 18.0, VirtualReplica.V1, 1),
            (COG, Shape(432, 768, 17), 17.9, VirtualReplica.V3, 1),
            (HUNYUAN, Shape(544, 960, 17), 36.5, VirtualReplica.V3, 1),
        ],
    )
    def test_less_memory_moves_stages_away(
        self,
        model: ModelId,
        shape: Shape,
        capacity_gb: float,
        replica: VirtualReplica,
        degree: int,
    ) -> None:
        memory = memory_of(model, capacity=int(capacity_gb * GB))
        [item] = classes_of(even(model, 1.0, [shape]), memory)
        assert (item.need.replica, item.need.degree) == (replica, degree)

    def test_the_paper_takes_the_first_replica_at_any_degree(self) -> None:
        loads = price_all(even(HUNYUAN, 1.0, [Shape(544, 960, 17)]), L20Cost())
        [item] = wanted(loads, memory_of(HUNYUAN), faithful=True)
        assert (item.need.replica, item.need.degree) == (VirtualReplica.V0, 2)

    def test_a_class_wider_than_any_node_cannot_be_served(self) -> None:
        memory = memory_of(COG, widest=4)
        assert classes_of(even(COG, 1.0, [Shape(1360, 768, 81)]), memory) == ()


class TestSustained:
    """The fluid model against figures done by hand."""

    def test_merged_stages_share_their_devices(self) -> None:
        # 20 steps x .595 + .08 + (.02 + .48 x .5625) = 12.27 device-seconds per request
        memory = memory_of(SD3)
        classes = classes_of(even(SD3, 1.0, [Shape(1536, 1536)]), memory)
        nodes = [Counter({role(SD3, "E", "D", "C"): 8})]
        balance = sustained(classes, nodes, memory, fragmentation=0.5)
        assert balance.factor == pytest.approx(8 / 12.27, rel=1e-3)
        assert list(balance.ratios) == ["diffuse"]

    def test_a_decode_on_a_primary_costs_part_of_its_block(self) -> None:
        # 6 x 4.75 x 8 = 228 device-seconds of diffuse, 10 of decode, each 1 + .5 x 7 times
        memory = memory_of(COG)
        classes = classes_of(even(COG, 0.1, [Shape(1360, 768, 81)]), memory)
        nodes = [Counter({role(COG, "E", "D", "C"): 8}) for _ in range(2)]
        merged = sustained(classes, nodes, memory, fragmentation=0.5)
        assert merged.factor == pytest.approx(16 / (22.8 + 4.5 + 0.0675), rel=1e-3)

    def test_broken_blocks_do_not_serve_wide_classes(self) -> None:
        memory = memory_of(COG)
        classes = classes_of(even(COG, 0.1, [Shape(1360, 768, 81)]), memory)
        pool = {role(COG, "C"): 1}
        nodes = [
            Counter({role(COG, "E", "D", "C"): 8}),
            Counter({role(COG, "E", "D", "C"): 7, **pool}),
        ]
        balance = sustained(classes, nodes, memory, fragmentation=0.5)
        assert (balance.wide, balance.loose) == (8, 7)
        assert balance.factor == pytest.approx(8 / 22.8, rel=1e-3)

    def test_a_pool_without_spill_is_a_hard_limit(self) -> None:
        memory = memory_of(COG)
        classes = classes_of(even(COG, 0.1, [Shape(432, 768, 17)]), memory)
        nodes = [Counter({role(COG, "D"): 6, role(COG, "C"): 1, role(COG, "E"): 1})]
        decode_s = 10.0 * 432 * 17 / (1360 * 81)
        balance = sustained(classes, nodes, memory, fragmentation=0.5)
        assert balance.factor == pytest.approx(6 / 0.714, rel=1e-3)
        assert balance.ratios["decode"] == pytest.approx(10 / decode_s)
        few = [Counter({role(COG, "D"): 60, role(COG, "C"): 1, role(COG, "E"): 1})]
        assert sustained(classes, few, memory, fragmentation=0.5).factor == pytest.approx(
            10 / decode_s, rel=1e-3
        )

    def test_a_class_without_any_home_sustains_nothing(self) -> None:
        memory = memory_of(COG)
        classes = classes_of(even(COG, 0.1), memory)
        balance = sustained(classes, [Counter({role(COG, "C"): 8})], memory, fragmentation=0.5)
        assert balance.factor == 0.0

    def test_a_pool_of_one_is_never_too_fast(self) -> None:
        counts = {"encode": 1, "diffuse": 8, "decode": 2}
        ratios = {"encode": 9.0, "diffuse": 1.0, "decode": 1.4}
        balance = Balance(1.0, ratios, counts, 8, 0)
        assert balance.imbalance() == pytest.approx(1.4)
        assert Balance(0.0, {"diffuse": 0.0}, {"diffuse": 0}, 0, 0).imbalance() == float("inf")


def a_balance(factor: float, wide: int = 120) -> Balance:
    return Balance(factor, {}, {}, wide, 0)


class TestSwitching:
    """What is worth a switch."""

    @pytest.mark.parametrize(
        ("new", "now", "load_s", "switch", "why"),
        [
            (1.09, 1.0, 100.0, "hold", "less than 10%"),
            (1.11, 1.0, 100.0, "switch", "11.0% more"),
            (1.04, 1.0, 1.0, "switch", "4.0% more"),
            (1.02, 1.0, 0.0, "hold", "less than 3%"),
            (1.15, 1.0, 9000.0, "hold", "would save 5009"),
            (9.0, 2.5, 0.0, "hold", "sustains 2.50 times"),
            (1.0, 0.0, 50.0, "switch", "more"),
        ],
    )
    def test_gain_against_loads(
        self, new: float, now: float, load_s: float, switch: str, why: str
    ) -> None:
        loads = Loads(load_s, load_s)
        verdict = weigh(a_balance(new), a_balance(now), loads, devices=128, knobs=KNOBS)
        assert verdict.switch is (switch == "switch")
        assert why in verdict.reason

    def test_whole_blocks_are_worth_a_cheap_switch_when_devices_change(self) -> None:
        new, now = a_balance(1.0, wide=120), a_balance(1.0, wide=88)
        free, dear = Loads(0.0, 0.0), Loads(500.0, 90.0)
        assert weigh(new, now, free, devices=128, knobs=KNOBS, mend=True).switch
        assert not weigh(new, now, dear, devices=128, knobs=KNOBS, mend=True).switch
        assert not weigh(new, now, free, devices=128, knobs=KNOBS).switch

    def test_few_requests_are_no_reason_for_a_small_gain(self) -> None:
        new, now, free = a_balance(1.06), a_balance(1.0), Loads(0.0, 0.0)
        assert weigh(new, now, free, devices=32, knobs=KNOBS, requests=100).switch
        verdict = weigh(new, now, free, devices=32, knobs=KNOBS, requests=25)
        assert not verdict.switch
        assert "less than 10%" in verdict.reason

    def test_loads_that_staying_would_need_as_well_do_not_count(self) -> None:
        slots = tuple(Slot(DeviceId(f"g{i}"), "n", L20_BYTES) for i in range(2))
        old = {slot.id: role(COG, "D", "C") for slot in slots}
        new = {slots[0].id: role(COG, "D", "C"), slots[1].id: role(COG, "E", "D", "C")}
        loads = extra_loads(new, old, slots, L20Cost())
        assert loads == Loads(pytest.approx(9.5 / 25), pytest.approx(9.5 / 25))  # type: ignore[arg-type]

    def test_a_stage_that_the_node_holds_comes_from_a_peer(self) -> None:
        holder = Slot(DeviceId("g0"), "n", L20_BYTES, resident=role(COG, "E"))
        other = Slot(DeviceId("g1"), "n", L20_BYTES)
        new = {holder.id: role(COG, "E"), other.id: role(COG, "E")}
        assert extra_loads(new, {}, (holder, other), L20Cost()).total_s == pytest.approx(9.5 / 50)


class TestIntegrity:
    """Invariants name what broke."""

    def test_a_class_without_a_team_is_named(self) -> None:
        slots = Roster(None, 0.0).slots(view_of(a_cluster(1), [COG]))
        memory = memory_of(COG)
        roles = {slot.id: role(COG, "D", "C") for slot in slots}
        with pytest.raises(PlacementError, match="Nothing can serve cogvideox"):
            check_integrity(roles, slots, classes_of(even(COG, 1.0), memory), memory)

    def test_a_device_that_holds_too_much_is_named_unless_it_swaps(self) -> None:
        slots = Roster(None, 0.0).slots(view_of(a_cluster(1, 1), [HUNYUAN, FLUX]))
        memory = memory_of(HUNYUAN, FLUX)
        everything = role(HUNYUAN, "E", "D", "C") | role(FLUX, "E", "D", "C")
        roles = {slots[0].id: everything}
        with pytest.raises(PlacementError, match="n000/g0 should hold"):
            check_integrity(roles, slots, (), memory)
        swapped = msgspec.structs.replace(memory, swapped=frozenset({everything}))
        check_integrity(roles, slots, (), swapped)


def test_the_paper_needs_requests_to_count() -> None:
    memory = memory_of(COG)
    assert paper_recipe(classes_of(even(COG, 0.0), memory), 8) is None
