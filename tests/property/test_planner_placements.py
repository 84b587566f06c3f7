"""Placements keep their promises on any cluster, for any mix, whatever happens to devices."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.types import ClusterView, DeviceId, DeviceInfo, ModelId, Placement
from schedulers.planner import Demand, Orchestrator, PlannerKnobs, check_integrity
from schedulers.planner.demand import ClassDemand
from schedulers.planner.matching import least_cost
from schedulers.planner.replicas import Memory, opt_vr, price_all, wanted
from schedulers.planner.roster import Roster, by_node
from schedulers.planner.split import apportioned, balanced
from tests.support.planning import (
    COG,
    FLUX,
    HUNYUAN,
    SD3,
    STEP_S,
    STEPS,
    L20Cost,
    a_cluster,
    snapshot_of,
    spec_of,
    view_of,
    weight_bytes,
)

CLASSES = [(model, shape) for model in STEP_S for shape in STEP_S[model]]
ENTRIES = st.tuples(st.sampled_from(CLASSES), st.floats(0.0, 3.0))
DEMANDS = st.lists(ENTRIES, min_size=1, max_size=6, unique_by=lambda entry: entry[0]).map(
    lambda entries: Demand(
        tuple(sorted(ClassDemand(m, shape, STEPS[m], rate) for (m, shape), rate in entries))
    )
)
CLUSTERS = st.lists(st.sampled_from([1, 2, 4, 7, 8]), min_size=1, max_size=4)


def cluster_of(sizes: list[int]) -> list[DeviceInfo]:
    return [info for n, size in enumerate(sizes) for info in a_cluster(n + 1, size)[n * size :]]


def models_of(demand: Demand) -> list[ModelId]:
    return sorted({entry.model for entry in demand.classes})


def check(
    planner: Orchestrator,
    placement: Placement,
    view: ClusterView,
    demand: Demand,
    *,
    faithful: bool = False,
) -> None:
    """Memory fits on every device and every class that can be served has a team."""
    slots = Roster(None, 0.0).slots(view)
    widest = max(len(node) for node in by_node(slots).values())
    decision = planner.last_decision
    assert decision is not None
    swapped = frozenset(placement.stages[device] for device in decision.swapped)
    capacity = min(device.capacity_bytes for device in view.devices)
    memory = Memory(view.weight_bytes, capacity, widest, swapped)
    classes = wanted(price_all(demand, L20Cost()), memory, faithful=faithful)
    check_integrity(placement.stages, slots, classes, memory)


@settings(deadline=None, max_examples=60)
@given(DEMANDS, CLUSTERS, st.sampled_from(["ours", "paper"]))
def test_every_placement_fits_and_serves_every_class_that_can_be_served(
    demand: Demand, sizes: list[int], rule: str
) -> None:
    faithful = rule == "paper"
    models = models_of(demand)
    specs = [spec_of(model) for model in models]
    view = view_of(cluster_of(sizes), models)
    planner = Orchestrator(specs, L20Cost(), prior=demand, faithful=faithful)
    placement = planner.place(view, None)
    if placement is None:  # no class fits these devices at all
        assert all(opt_vr(load, Memory(weight_bytes(*models), 48 * 10**9, max(sizes))) is None
                   for load in price_all(demand, L20Cost()))  # fmt: skip
        return
    assert placement.stages.keys() == set(view.configured)
    check(planner, placement, view, demand, faithful=faithful)
    twin = Orchestrator(specs, L20Cost(), prior=demand, faithful=faithful).place(view, None)
    assert placement == twin


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from([COG, HUNYUAN, SD3, FLUX]),
    st.lists(
        st.tuples(DEMANDS, st.integers(1, 90), st.sets(st.integers(0, 15), max_size=9)),
        max_size=5,
    ),
)
def test_whatever_comes_versions_grow_and_nothing_becomes_impossible(
    model: ModelId, story: list[tuple[Demand, int, set[int]]]
) -> None:
    infos = a_cluster(2)
    knobs = PlannerKnobs(boot_grace_s=0.0, cooldown_s=10.0)
    planner = Orchestrator([spec_of(model)], L20Cost(), policy=knobs)
    placement, version, now_s = None, 0, 0.0
    for demand, seconds, lost in story:
        own = Demand(tuple(entry for entry in demand.classes if entry.model == model))
        gone: set[DeviceId] = {infos[i].id for i in lost}
        for _ in range(seconds):
            now_s += 1.0
            view = view_of(infos, [model], placement=placement, lost=gone, now_s=now_s)
            new = planner.place(view, snapshot_of(own, now_s))
            decision = planner.last_decision
            if new is not None:
                assert decision is not None
                assert new.version == version + 1 == decision.version
                assert decision.switched
                placement, version = new, new.version
                if decision.sustains_now and "more" in decision.reason:
                    gain = decision.sustains_new / decision.sustains_now - 1
                    assert gain >= (knobs.cheap_gain if decision.load_s <= 4.8 else knobs.min_gain)
            if placement is not None and view.devices:
                check(planner, placement, view, own)


@given(
    st.integers(0, 60),
    st.lists(st.tuples(st.floats(0.0, 100.0), st.integers(0, 8)), min_size=1, max_size=5),
)
def test_shares_add_up_and_keep_their_floors(total: int, parts: list[tuple[float, int]]) -> None:
    work, floors = [w for w, _ in parts], [f for _, f in parts]
    shares = apportioned(total, work, floors)
    assert (shares is None) == (sum(floors) > total)
    if shares is not None:
        assert sum(shares) == total
        assert all(share >= floor for share, floor in zip(shares, floors, strict=True))


@given(st.integers(2, 12), st.lists(st.floats(0.01, 100.0), min_size=2, max_size=3))
def test_the_hill_climb_finds_the_best_split(total: int, speeds: list[float]) -> None:
    counts = balanced(total, speeds, [1] * len(speeds))
    if counts is None:
        assert total < len(speeds)
        return
    best = max(
        min(n * v for n, v in zip(split, speeds, strict=True))
        for split in _splits(total, len(speeds))
    )
    assert min(n * v for n, v in zip(counts, speeds, strict=True)) >= best * (1 - 1e-6) - 1e-6


def _splits(total: int, parts: int) -> list[list[int]]:
    if parts == 1:
        return [[total]]
    return [
        [n, *rest] for n in range(1, total - parts + 2) for rest in _splits(total - n, parts - 1)
    ]


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=6), st.data()
)
def test_seats_cost_no_more_than_any_other_seating(
    costs: list[list[int]], data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(costs)))
    second = data.draw(st.integers(0, len(costs) - first))
    seats = [first, second, len(costs) - first - second]
    chosen = least_cost(costs, seats)
    assert [chosen.count(column) for column in range(3)] == seats
    paid = sum(row[column] for row, column in zip(costs, chosen, strict=True))
    assert paid == _cheapest(tuple(map(tuple, costs)), tuple(seats))


def _cheapest(costs: tuple[tuple[int, ...], ...], seats: tuple[int, ...]) -> int:
    if not costs:
        return 0
    return min(
        costs[0][j] + _cheapest(costs[1:], (*seats[:j], free - 1, *seats[j + 1 :]))
        for j, free in enumerate(seats)
        if free
    )
