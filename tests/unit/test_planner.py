"""What the orchestrator places for the public workloads, and how it follows what changes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import pytest

from engine.types import (
    ClusterView,
    DeviceId,
    DeviceInfo,
    ModelId,
    Placement,
    Shape,
    StageKey,
    StageKind,
)
from schedulers.planner import (
    Demand,
    HandSized,
    HandSizes,
    Orchestrator,
    PlacementError,
    PlannerKnobs,
    Trigger,
)
from schedulers.planner.demand import ClassDemand, merged, observed, shape_of
from tests.support.planning import (
    COG,
    FLUX,
    GB,
    HUNYUAN,
    SD3,
    STEP_S,
    STEPS,
    E,
    L20Cost,
    a_cluster,
    even,
    label,
    snapshot_of,
    spec_of,
    view_of,
)


def a_planner(
    models: Sequence[ModelId], prior: Demand | None = None, **changes: object
) -> Orchestrator:
    cost = changes.pop("cost", L20Cost())
    return Orchestrator([spec_of(m) for m in models], cost, prior=prior, **changes)  # type: ignore[arg-type]


def placed(
    models: Sequence[ModelId],
    prior: Demand | None,
    nodes: int,
    per_node: int = 8,
    **changes: object,
) -> Placement:
    planner = a_planner(models, prior, **changes)
    placement = planner.place(view_of(a_cluster(nodes, per_node), models), None)
    assert placement is not None
    return placement


def totals(placement: Placement) -> dict[str, int]:
    return dict(Counter(label(stages) for stages in placement.stages.values()))


def nodes_of(placement: Placement) -> list[dict[str, int]]:
    nodes: dict[str, Counter[str]] = {}
    for device, stages in placement.stages.items():
        nodes.setdefault(device.split("/")[0], Counter())[label(stages)] += 1
    return [dict(nodes[name]) for name in sorted(nodes)]


class TestBootstrap:
    """First placements from a prior."""

    def test_cog_gets_one_whole_node_of_auxiliaries(self) -> None:
        placement = placed([COG], even(COG, 1.5), 16)
        assert totals(placement) == {"DC": 120, "C": 7, "E": 1}
        assert Counter(map(str, nodes_of(placement))) == {"{'DC': 8}": 15, "{'C': 7, 'E': 1}": 1}

    def test_hunyuan_gets_five_decoders_and_two_that_fill_the_node(self) -> None:
        placement = placed([HUNYUAN], even(HUNYUAN, 0.7114), 16)
        assert Counter(map(str, nodes_of(placement))) == {"{'DC': 8}": 15, "{'C': 7, 'E': 1}": 1}
        exact = PlannerKnobs(whole_blocks=0.0)
        placement = placed([HUNYUAN], even(HUNYUAN, 0.7114), 16, policy=exact)
        assert {"C": 5, "E": 1, "DC": 2} in nodes_of(placement)

    def test_a_small_cluster_spends_no_device_on_encode_alone(self) -> None:
        placement = placed([COG], even(COG, 0.37), 4)
        assert totals(placement) == {"EDC": 30, "C": 2}
        assert {"EDC": 6, "C": 2} in nodes_of(placement)

    @pytest.mark.parametrize(("model", "rate"), [(SD3, 6.0), (FLUX, 2.6)])
    def test_images_get_no_pools(self, model: ModelId, rate: float) -> None:
        assert totals(placed([model], even(model, rate), 4)) == {"EDC": 32}

    @pytest.mark.parametrize("nodes", [1, 2])
    def test_a_pool_never_breaks_the_last_blocks_of_cog(self, nodes: int) -> None:
        assert totals(placed([COG], even(COG, 0.09 * nodes), nodes)) == {"EDC": 8 * nodes}

    def test_hunyuan_on_one_node_swaps_the_encoder_on_every_device(self) -> None:
        planner = a_planner([HUNYUAN], even(HUNYUAN, 0.04))
        placement = planner.place(view_of(a_cluster(1), [HUNYUAN]), None)
        assert placement is not None
        assert totals(placement) == {"EDC": 8}
        assert planner.last_decision is not None
        assert len(planner.last_decision.swapped) == 8

    def test_slower_decode_gets_more_decoders(self) -> None:
        placement = placed([COG], even(COG, 1.5), 16, cost=L20Cost(decode_factor=2.0))
        assert totals(placement) == {"DC": 112, "C": 15, "E": 1}

    def test_an_unknown_rate_is_sized_for_the_target_load(self) -> None:
        assert totals(placed([COG], even(COG, None), 16)) == {"DC": 120, "C": 7, "E": 1}

    def test_without_a_prior_default_sizes_are_planned_for(self) -> None:
        planner = a_planner([SD3])
        assert planner.place(view_of(a_cluster(1, 3), [SD3]), None) is not None
        assert planner.last_decision is not None
        assert planner.last_decision.trigger is Trigger.BOOTSTRAP
        assert [entry.shape for entry in planner.last_decision.demand.classes] == [Shape(128, 128)]

    def test_nothing_is_planned_before_any_memory_is_known(self) -> None:
        planner, infos = a_planner([COG], even(COG, 1.5)), a_cluster(2)
        lost = [info.id for info in infos]
        assert planner.place(view_of(infos, [COG], lost=lost), None) is None
        assert planner.last_decision is None

    def test_devices_that_are_not_up_yet_are_planned_with(self) -> None:
        infos = a_cluster(16)
        nodes = {info.id: info.node for info in infos}
        planner = a_planner([COG], even(COG, 1.5), nodes=nodes)
        first = view_of(infos, [COG], lost=[info.id for info in infos[1:]])
        placement = planner.place(first, None)
        assert placement is not None
        assert len(placement.stages) == 128
        assert planner.place(view_of(infos, [COG], placement=placement), None) is None

    def test_blocks_become_whole_as_the_nodes_of_devices_become_known(self) -> None:
        infos = a_cluster(4)
        planner, placement = a_planner([COG], even(COG, 0.37)), None
        for up in range(1, 33):
            arrived = [infos[i * 13 % 32] for i in range(up)]
            lost = {info.id for info in infos} - {info.id for info in arrived}
            view = view_of(infos, [COG], lost=lost, now_s=up / 10)
            placement = planner.place(view, None) or placement
        assert placement is not None
        diffusing = [
            sum(n for role, n in node.items() if "D" in role) for node in nodes_of(placement)
        ]
        assert sorted(diffusing)[1:] == [8, 8, 8]

    def test_a_device_that_never_comes_up_is_given_up(self) -> None:
        infos = a_cluster(2)
        planner = a_planner([COG], even(COG, 0.1))
        view = view_of(infos, [COG], lost=[infos[0].id])
        placement = planner.place(view, None)
        assert placement is not None
        assert infos[0].id in placement.stages
        planner.place(msgspec.structs.replace(view, now_s=500.0), None)
        assert planner.last_decision is not None
        assert planner.last_decision.trigger is Trigger.DEVICES

    def test_classes_that_fit_nowhere_are_named(self) -> None:
        planner = a_planner([HUNYUAN], even(HUNYUAN, 0.01))
        planner.place(view_of(a_cluster(1, 2), [HUNYUAN]), None)
        assert planner.last_decision is not None
        shapes = [entry.shape for entry in planner.last_decision.impossible]
        assert Shape(1280, 720, 129) in shapes
        assert Shape(544, 960, 17) not in shapes


class TestSeveralModels:
    """One cluster for many."""

    def test_models_that_fit_together_share_all_devices(self) -> None:
        placement = placed([COG, SD3], merged(even(COG, 0.75), even(SD3, 6.0)), 16)
        held = {stage.model for stages in placement.stages.values() for stage in stages}
        assert held == {COG, SD3}
        shared = [s for s in placement.stages.values() if {x.model for x in s} == {COG, SD3}]
        assert len(shared) >= 120

    def test_models_that_do_not_fit_together_share_by_work(self) -> None:
        placement = placed([FLUX, SD3], merged(even(FLUX, 0.3), even(SD3, 3.0)), 4)
        models = Counter(next(iter(stages)).model for stages in placement.stages.values())
        assert models == {FLUX: 16, SD3: 16}

    def test_models_of_unknown_rates_begin_with_as_many_devices_however_cheap_their_requests_are(
        self,
    ) -> None:
        placement = placed([FLUX, SD3], merged(even(FLUX, None), even(SD3, None)), 2)
        models = Counter(next(iter(stages)).model for stages in placement.stages.values())
        assert models == {FLUX: 8, SD3: 8}

    def test_two_videos_share_one_node_of_auxiliaries(self) -> None:
        prior = merged(even(COG, 0.75), even(HUNYUAN, 0.35))
        assert {"C": 7, "E": 1} in nodes_of(placed([COG, HUNYUAN], prior, 16))

    def test_far_too_many_models_for_one_node_are_swapped(self) -> None:
        models = [COG, HUNYUAN, SD3, FLUX]
        planner = a_planner(models, merged(*(even(m, 0.1) for m in models)))
        placement = planner.place(view_of(a_cluster(1), models), None)
        assert placement is not None
        assert planner.last_decision is not None
        assert len(planner.last_decision.swapped) == 8
        assert planner.last_decision.impossible == ()


class TestPaper:
    """Algorithm 2 as it is written."""

    def test_types_are_counted_by_requests_and_nothing_spills(self) -> None:
        placement = placed([HUNYUAN], even(HUNYUAN, 0.7114), 16, faithful=True)
        assert totals(placement) == {"EDC": 80, "DC": 47, "E": 1}

    def test_a_model_that_fits_has_no_auxiliaries(self) -> None:
        assert totals(placed([COG], even(COG, 1.5), 16, faithful=True)) == {"EDC": 128}

    def test_a_class_that_flooring_would_forget_is_still_served(self) -> None:
        rare = merged(even(HUNYUAN, 1.0), Demand(())).classes
        skewed = Demand(
            tuple(
                msgspec.structs.replace(entry, rate_per_s=100.0 if i == 0 else 0.001)
                for i, entry in enumerate(rare)
            )
        )
        assert placed([HUNYUAN], skewed, 2, faithful=True).version == 1


class Watched:
    """A planner on a cluster that follows it, second by second."""

    def __init__(self, planner: Orchestrator, infos: list[DeviceInfo], model: ModelId) -> None:
        self.planner, self.infos, self.model, self.now_s = planner, infos, model, 0.0
        self.placement = planner.place(self.view(), None)
        self.lost: set[DeviceId] = set()

    def view(self, lost: frozenset[DeviceId] = frozenset()) -> ClusterView:
        placement = getattr(self, "placement", None)
        return view_of(self.infos, [self.model], placement=placement, lost=lost, now_s=self.now_s)

    def run(self, demand: Demand, seconds: int) -> Iterator[tuple[float, Placement]]:
        for _ in range(seconds):
            self.now_s += 1.0
            new = self.planner.place(self.view(), snapshot_of(demand, self.now_s))
            if new is not None:
                self.placement = new
                yield self.now_s, new


def mixed(rates: Mapping[Shape, float]) -> Demand:
    return Demand(tuple(sorted(ClassDemand(COG, s, 6, rate) for s, rate in rates.items())))


SMALL, WIDE = Shape(432, 768, 33), Shape(1360, 768, 81)


class TestFollowing:
    """Triggers, hysteresis, cooldown."""

    def test_steady_demand_changes_nothing(self) -> None:
        watched = Watched(a_planner([COG], even(COG, 1.5)), a_cluster(16), COG)
        assert list(watched.run(even(COG, 1.5), 600)) == []

    def test_the_pool_follows_when_small_shapes_double(self) -> None:
        before, after = mixed({SMALL: 2.5, WIDE: 0.2}), mixed({SMALL: 5.0, WIDE: 0.1})
        watched = Watched(a_planner([COG], before), a_cluster(16), COG)
        assert watched.placement is not None
        old = totals(watched.placement)
        assert list(watched.run(before, 120)) == []
        [(at_s, placement)] = watched.run(after, 300)
        assert at_s <= 120 + 2 * 60 + 1
        assert totals(placement)["C"] > old["C"]
        assert watched.planner.last_decision is not None
        assert watched.planner.last_decision.sustains_new > 1.0

    def test_the_pool_follows_what_the_cost_model_learns(self) -> None:
        cost = L20Cost()
        watched = Watched(a_planner([COG], even(COG, 1.3), cost=cost), a_cluster(16), COG)
        assert list(watched.run(even(COG, 1.3), 60)) == []
        cost.decode_factor = 2.0
        [(at_s, placement)] = watched.run(even(COG, 1.3), 200)
        assert at_s <= 60 + 2 * 60 + 1
        assert totals(placement)["C"] > 10

    def test_a_comfortable_placement_is_left_alone(self) -> None:
        before = mixed({SMALL: 2.5, WIDE: 0.2})
        planner = a_planner([COG], before, policy=PlannerKnobs(comfort=1.0))
        watched = Watched(planner, a_cluster(16), COG)
        assert list(watched.run(mixed({SMALL: 5.0, WIDE: 0.1}), 300)) == []
        assert watched.planner.last_decision is not None
        assert "sustains" in watched.planner.last_decision.reason

    def test_a_new_class_without_a_team_is_heard_at_once(self) -> None:
        planner = a_planner([HUNYUAN], even(HUNYUAN, 0.1, [Shape(544, 960, 17)]))
        watched = Watched(planner, a_cluster(1, 4), HUNYUAN)
        assert watched.placement is not None
        assert totals(watched.placement) == {"DC": 3, "E": 1}
        wide = even(HUNYUAN, 0.1, [Shape(544, 960, 65)])
        [(at_s, placement)] = watched.run(wide, 100)
        assert (at_s, totals(placement)) == (1.0, {"EDC": 4})
        assert planner.last_decision is not None
        assert planner.last_decision.trigger is Trigger.UNSERVED

    def test_a_high_bar_keeps_the_placement(self) -> None:
        knobs = PlannerKnobs(min_gain=0.5, cheap_gain=0.5)
        before = mixed({SMALL: 2.5, WIDE: 0.2})
        watched = Watched(a_planner([COG], before, policy=knobs), a_cluster(16), COG)
        assert list(watched.run(mixed({SMALL: 5.0, WIDE: 0.1}), 300)) == []
        assert watched.planner.last_decision is not None
        assert not watched.planner.last_decision.switched
        assert "less than 50%" in watched.planner.last_decision.reason

    def test_between_two_switches_lies_the_cooldown(self) -> None:
        knobs = PlannerKnobs(cooldown_s=400.0)
        one, other = mixed({SMALL: 2.5, WIDE: 0.2}), mixed({SMALL: 5.0, WIDE: 0.1})
        watched = Watched(a_planner([COG], one, policy=knobs), a_cluster(16), COG)
        [(at_s, _)] = watched.run(other, 500)
        assert at_s >= 400.0

    def test_a_lost_pool_is_replaced_at_once_and_a_returned_device_gets_a_role(self) -> None:
        watched = Watched(a_planner([COG], even(COG, 1.3)), a_cluster(16), COG)
        assert watched.placement is not None
        pool = frozenset(d for d, s in watched.placement.stages.items() if label(s) in ("C", "E"))
        watched.now_s = 5.0
        second = watched.planner.place(watched.view(pool), None)
        assert second is not None
        assert second.version == 2
        assert not pool & second.stages.keys()
        assert {"C": 7, "E": 1} in nodes_of(second)
        watched.placement = second
        watched.now_s = 9.0
        third = watched.planner.place(watched.view(), None)
        assert third is not None
        assert totals(third) == {"DC": 120, "C": 7, "E": 1}
        changed = [d for d in third.stages if third.stages[d] != second.stages.get(d)]
        assert set(changed) == pool

    def test_losing_one_primary_moves_nobody(self) -> None:
        watched = Watched(a_planner([COG], even(COG, 1.5)), a_cluster(16), COG)
        assert watched.placement is not None
        one = next(d for d, s in watched.placement.stages.items() if label(s) == "DC")
        assert watched.planner.place(watched.view(frozenset({one})), None) is None
        assert watched.planner.last_decision is not None
        assert watched.planner.last_decision.trigger is Trigger.DEVICES

    def test_the_paper_switches_whenever_stages_are_unbalanced(self) -> None:
        planner = a_planner([HUNYUAN], even(HUNYUAN, 0.7), faithful=True)
        watched = Watched(planner, a_cluster(16), HUNYUAN)
        few = even(HUNYUAN, 0.7, [Shape(544, 960, 17), Shape(1280, 720, 17)])
        assert len(list(watched.run(few, 300))) >= 1

    def test_a_call_without_news_costs_microseconds(self) -> None:
        planner, infos = a_planner([COG], even(COG, 1.5)), a_cluster(16)
        view = view_of(infos, [COG])
        planner.place(view, None)
        best_s = 1.0
        for _ in range(20):
            started = time.perf_counter()
            for _ in range(200):
                planner.place(view, None)
            best_s = min(best_s, (time.perf_counter() - started) / 200)
        assert best_s < 5e-6


class TestDemand:
    """From windows to rates."""

    def test_a_young_window_is_divided_by_its_age(self) -> None:
        snapshot = snapshot_of(even(SD3, 5.0), 60.0)
        seen = observed(snapshot, elapsed_s=30.0, known=Demand(()), steps=STEPS)
        assert seen.demand.rate_per_s == pytest.approx(10.0)
        assert seen.requests == 300

    def test_steps_come_from_what_is_known_if_the_window_does_not_tell(self) -> None:
        known = Demand((ClassDemand(SD3, Shape(128, 128), 7, 1.0),))
        silent = Demand(
            tuple(msgspec.structs.replace(entry, steps=0) for entry in even(SD3, 5.0).classes)
        )
        seen = observed(snapshot_of(silent, 60.0), elapsed_s=60, known=known, steps=STEPS)
        assert {entry.shape: entry.steps for entry in seen.demand.classes}[Shape(128, 128)] == 7

    def test_models_that_are_not_served_are_ignored(self) -> None:
        seen = observed(
            snapshot_of(even(SD3, 5.0), 60.0), elapsed_s=60, known=Demand(()), steps={COG: 6}
        )
        assert seen.requests == 0

    @pytest.mark.parametrize("shape", [Shape(64, 32), Shape(64, 32, 9)])
    def test_shapes_are_read_back(self, shape: Shape) -> None:
        assert shape_of(str(shape)) == shape
        assert shape_of("large") is None

    def test_one_request_does_not_make_a_mix(self) -> None:
        planner = a_planner([COG], even(COG, 1.5))
        watched = Watched(planner, a_cluster(16), COG)
        assert list(watched.run(mixed({SMALL: 1 / 60}), 300)) == []
        assert watched.planner.last_decision is not None
        assert watched.planner.last_decision.trigger is Trigger.BOOTSTRAP


class TestHandSized:
    """Sizes from a human."""

    def test_counts_are_packed_like_ours(self) -> None:
        planner = HandSized([spec_of(COG)], HandSizes(decode=7, encode=1))
        view = view_of(a_cluster(16), [COG])
        placement = planner.place(view, None)
        assert placement is not None
        assert totals(placement) == {"DC": 120, "C": 7, "E": 1}
        assert {"C": 7, "E": 1} in nodes_of(placement)
        assert planner.place(view, None) is None

    def test_models_get_primaries_of_their_own_in_whole_nodes(self) -> None:
        sizes = HandSizes(decode=1, encode=1, models={FLUX: 22, HUNYUAN: 8})
        planner = HandSized([spec_of(HUNYUAN), spec_of(FLUX)], sizes)
        placement = planner.place(view_of(a_cluster(4), [HUNYUAN, FLUX]), None)
        assert placement is not None
        owners = {
            device: sorted({stage.model for stage in role if stage.kind is StageKind.DIFFUSE})
            for device, role in placement.stages.items()
        }
        assert Counter(map(tuple, owners.values())) == {(FLUX,): 22, (HUNYUAN,): 8, (): 2}
        assert (
            len({str(device)[:2] for device, models in owners.items() if models == [HUNYUAN]}) == 1
        )

    def test_a_model_that_nobody_serves_is_named(self) -> None:
        planner = HandSized([spec_of(COG)], HandSizes(models={FLUX: 8}))
        with pytest.raises(PlacementError, match="flux"):
            planner.place(view_of(a_cluster(1), [COG]), None)

    def test_it_packs_again_when_a_device_is_lost(self) -> None:
        planner = HandSized([spec_of(COG)], HandSizes(decode=1, encode=1, spill=False))
        infos = a_cluster(1)
        assert planner.place(view_of(infos, [COG]), None) is not None
        again = planner.place(view_of(infos, [COG], lost=[infos[0].id]), None)
        assert again is not None
        assert (again.version, totals(again)) == (2, {"D": 5, "C": 1, "E": 1})

    def test_more_than_there_is_and_what_does_not_fit_are_refused(self) -> None:
        with pytest.raises(PlacementError, match="cannot hold"):
            HandSized([spec_of(COG)], HandSizes(decode=8)).place(view_of(a_cluster(1), [COG]), None)
        both = [spec_of(HUNYUAN), spec_of(FLUX)]
        with pytest.raises(PlacementError, match="do not fit one device"):
            HandSized(both, HandSizes()).place(view_of(a_cluster(1), [HUNYUAN, FLUX]), None)


def test_encode_leaves_a_device_that_is_too_small_for_it() -> None:
    small = [msgspec.structs.replace(info, memory_bytes=20 * GB) for info in a_cluster(1, 4)]
    planner = a_planner([COG], even(COG, 0.01, list(STEP_S[COG])[:2]))
    placement = planner.place(view_of(small, [COG]), None)
    assert placement is not None
    assert set(totals(placement)) <= {"DC", "E", "C"}
    for stages in placement.stages.values():
        assert not (StageKey(COG, E) in stages and len(stages) > 1)


def test_devices_too_small_for_a_class_are_left_out_of_the_plan() -> None:
    infos = [
        msgspec.structs.replace(info, memory_bytes=(16 if info.node == "n001" else 48) * GB)
        for info in a_cluster(3)
    ]
    planner = a_planner([COG], even(COG, 0.1))
    placement = planner.place(view_of(infos, [COG]), None)
    assert placement is not None
    assert planner.last_decision is not None
    assert planner.last_decision.impossible == ()
    assert {device.split("/")[0] for device in placement.stages} == {"n000", "n002"}
    assert planner.place(view_of(infos, [COG], placement=placement, now_s=2.0), None) is None
