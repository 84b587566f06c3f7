"""What the cost model answers with a profile: lookups, degrees, references, and what it learns."""

from __future__ import annotations

import msgspec
import pytest

from engine.messages import StageReport
from engine.pipelines import PipelineSpec
from engine.types import (
    GenerationRequest,
    MediaFormat,
    ModelId,
    NodeId,
    Shape,
    StageKey,
    StageKind,
    StageTask,
    TaskId,
)
from schedulers.cost import CostModel
from schedulers.interpolation import Curve, Knot
from schedulers.profile import Provenance, load_profile, specs_of
from tests.support.builders import MODEL, a_request, a_spec

L20 = load_profile("l20")
COG, HUNYUAN = ModelId("cogvideox1.5-5b"), ModelId("hunyuanvideo")
ENCODE, DIFFUSE, DECODE = StageKind.ENCODE, StageKind.DIFFUSE, StageKind.DECODE
SMALL, LARGE = Shape(432, 768, 17), Shape(1360, 768, 81)


def a_model(*, learn: bool = True) -> CostModel:
    return CostModel(specs_of(L20), L20, learn=learn)


def a_cog() -> PipelineSpec:
    return next(spec for spec in specs_of(L20) if spec.id == COG)


def cog(shape: Shape = LARGE, **changes: object) -> GenerationRequest:
    values = {"model": COG, "shape": shape, "steps": 6, "media": MediaFormat.MP4} | changes
    return a_request(**values)


def observe(
    cost: CostModel,
    request: GenerationRequest,
    run_s: float,
    *,
    kind: StageKind = DIFFUSE,
    degree: int = 1,
    steps_done: int = 0,
    peak: int = 0,
) -> None:
    task = StageTask(
        id=TaskId("t"),
        request=request,
        node=NodeId("n"),
        stage=StageKey(request.model, kind),
        image_index=0,
        inputs=(),
        sequence=0,
        attempt=1,
        ready_s=0.0,
    )
    report = StageReport(
        task=task.id,
        kind=kind,
        receive_s=0.0,
        run_s=run_s,
        send_s=0.0,
        peak_memory_bytes=peak,
        steps_done=steps_done,
    )
    cost.observe(task, report, degree=degree)


class TestEstimates:
    def test_a_profiled_size_takes_what_the_profile_says(self) -> None:
        for name, model in L20.models.items():
            for kind, stage in model.stages.items():
                for entry in stage.entries:
                    request = a_request(model=name, shape=entry.shape or SMALL, steps=7)
                    found = a_model().estimate(
                        StageKey(ModelId(name), kind),
                        request,
                        degree=entry.degree,
                        batch=entry.batch,
                    )
                    steps = 7 if kind is DIFFUSE else 1
                    assert found.duration_s == entry.duration_s * steps
                    assert found.activation_bytes == entry.peak_activation_bytes
                    assert (found.provenance, found.extrapolation) == (entry.provenance, 1.0)
                    assert not found.measured

    def test_a_turned_picture_costs_the_same(self) -> None:
        cost, stage = a_model(), StageKey(COG, DIFFUSE)
        lying, standing = cog(Shape(1360, 768, 17)), cog(Shape(768, 1360, 17))
        assert cost.estimate(stage, lying, degree=4) == cost.estimate(stage, standing, degree=4)

    def test_a_size_between_profiled_ones_lies_between_them(self) -> None:
        cost = a_model()
        assert 1.19 < cost.step_s(COG, Shape(432, 768, 25), 1) < 2.16

    @pytest.mark.parametrize(
        ("shape", "ratio"),
        [
            (Shape(1360, 768, 243), 3.0),
            (Shape(1360, 768, 81), 1.0),
            (Shape(640, 640, 40), 1.0),
            (Shape(216, 768, 17), 0.5),
        ],
    )
    def test_it_says_how_far_it_extrapolates(self, shape: Shape, ratio: float) -> None:
        found = a_model().estimate(StageKey(COG, DIFFUSE), cog(shape))
        assert found.extrapolation == pytest.approx(ratio)

    def test_far_beyond_the_profile_time_grows_faster_than_pixels_but_at_most_squared(self) -> None:
        cost = a_model()
        largest = cost.step_s(COG, LARGE, 1)
        assert 3 * largest < cost.step_s(COG, Shape(1360, 768, 243), 1) <= 9 * largest

    @pytest.mark.parametrize("model", [COG, HUNYUAN])
    def test_a_video_size_left_out_of_the_profile_is_met_within_a_quarter(
        self, model: ModelId
    ) -> None:
        entries = L20.models[model].stages[DIFFUSE].entries
        for degree in (1, 2, 4, 8):
            knots = sorted(
                (
                    Knot(entry.shape.pixels, entry.duration_s, entry.provenance)
                    for entry in entries
                    if entry.degree == degree and entry.shape
                ),
                key=lambda knot: knot.pixels,
            )
            for left_out in knots[1:-1]:
                curve = Curve([k for k in knots if k != left_out], quadratic=True)
                assert curve.at(left_out.pixels) == pytest.approx(left_out.value, rel=0.25)

    def test_decode_of_an_unprofiled_size_follows_its_line(self) -> None:
        image = a_request(model="flux1", shape=Shape(1280, 720))
        found = a_model().estimate(StageKey(ModelId("flux1"), DECODE), image)
        assert found.duration_s == pytest.approx(0.02 + 0.48 * 1280 * 720 / 2048**2)

    def test_half_of_an_encode_is_shared_by_a_batch(self) -> None:
        cost, stage = a_model(), StageKey(COG, ENCODE)
        taken = [cost.estimate(stage, cog(), batch=b).duration_s for b in (1, 2, 3, 8, 16)]
        t = 0.15
        assert taken == pytest.approx([t, 1.5 * t, 2 * t, 4.5 * t, 9 * t])

    def test_batches_that_were_not_profiled_gain_nothing(self) -> None:
        cost, stage = a_model(), StageKey(COG, DECODE)
        one, four = cost.estimate(stage, cog()), cost.estimate(stage, cog(), batch=4)
        assert four.duration_s == pytest.approx(4 * one.duration_s)
        assert four.activation_bytes == 4 * one.activation_bytes

    def test_degrees_that_were_not_profiled_gain_nothing_and_are_assumed(self) -> None:
        cost, stage = a_model(), StageKey(COG, DIFFUSE)
        four, six = (cost.estimate(stage, cog(), degree=k) for k in (4, 6))
        assert six.duration_s == four.duration_s
        assert (four.provenance, six.provenance) == (Provenance.PUBLISHED, Provenance.ASSUMED)

    def test_a_model_that_was_not_profiled_is_guessed(self) -> None:
        spec, request = a_spec(), a_request()
        alone = CostModel([spec])
        beside = CostModel([spec, *specs_of(L20)], L20)
        for stage in spec.stages:
            assert beside.estimate(stage, request) == alone.estimate(stage, request)
        assert beside.degrees(MODEL) == (1,)
        assert beside.reference_s(request) == alone.latency_s(request)


class TestDegrees:
    @pytest.mark.parametrize(
        ("model", "shape", "least", "best"),
        [
            ("sd3", Shape(1024, 1024), 1, 1),
            ("sd3", Shape(1536, 1536), 1, 2),
            ("flux1", Shape(1024, 1024), 1, 1),
            ("flux1", Shape(2048, 2048), 2, 2),
            ("flux1", Shape(4096, 4096), 2, 8),
            (COG, Shape(432, 768, 33), 1, 1),  # strictly .794 at two devices
            (COG, Shape(1360, 768, 33), 4, 4),
            (COG, Shape(1360, 768, 65), 8, 8),  # forced, although only .78 efficient
            (HUNYUAN, Shape(544, 960, 65), 4, 8),
        ],
    )
    def test_the_best_degree_is_efficient_or_forced(
        self, model: str, shape: Shape, least: int, best: int
    ) -> None:
        cost = a_model()
        assert cost.min_degree(ModelId(model), shape) == least
        assert cost.best_degree(ModelId(model), shape) == best

    def test_what_is_learnt_does_not_move_the_best_degree(self) -> None:
        cost = a_model()
        before = cost.best_degree(COG, SMALL), cost.reference_s(cog(SMALL))
        for _ in range(20):
            observe(cost, cog(SMALL), 100.0, degree=1)
        assert (cost.best_degree(COG, SMALL), cost.reference_s(cog(SMALL))) == before

    def test_a_degree_that_the_model_cannot_run_at_is_never_offered(self) -> None:
        [spec] = specs_of(L20, ["cogvideox1.5-5b"])
        cost = CostModel([msgspec.structs.replace(spec, degrees=(1, 2))], L20)
        assert cost.degrees(COG) == (1, 2)
        assert all(cost.min_degree(COG, shape) <= 2 for shape in L20.models[COG].shapes)
        assert all(cost.best_degree(COG, shape) <= 2 for shape in L20.models[COG].shapes)

    def test_without_a_profile_there_is_one_degree(self) -> None:
        cost = CostModel([a_spec()])
        assert cost.degrees(MODEL) == (1,)
        assert cost.min_degree(MODEL, LARGE) == cost.best_degree(MODEL, LARGE) == 1


class TestRequests:
    def test_the_reference_is_the_three_stages_at_the_best_degree(self) -> None:
        assert a_model().reference_s(cog()) == pytest.approx(0.15 + 6 * 4.75 + 10.0)

    def test_the_latency_is_the_reference_with_what_was_learnt(self) -> None:
        cost = a_model()
        assert cost.latency_s(cog()) == pytest.approx(cost.reference_s(cog()))
        observe(cost, cog(), 2 * 6 * 4.75, degree=8)
        assert cost.latency_s(cog()) == pytest.approx(0.15 + 1.3 * 6 * 4.75 + 10.0)

    def test_several_outputs_take_no_longer_on_idle_devices(self) -> None:
        assert a_model().latency_s(cog(n=4)) == a_model().latency_s(cog())

    @pytest.mark.parametrize("outputs", [1, 3])
    def test_what_steps_take_is_a_line_as_admission_takes_for_granted(self, outputs: int) -> None:
        for cost in (a_model(), CostModel(specs_of(L20))):
            for ask in (cost.latency_s, cost.work_s):
                few, some, many = (ask(cog(n=outputs, steps=steps)) for steps in (2, 5, 11))
                assert (some - few) / 3 == pytest.approx((many - some) / 6)
                assert few < some


class TestTelling:
    def test_a_process_without_the_profile_believes_what_one_with_it_knows(self) -> None:
        told, hears = a_model(), CostModel(specs_of(L20))
        observe(told, cog(SMALL), 2 * 6 * told.step_s(COG, SMALL, 1))
        hears.adopt(told.learnt())
        for shape in (SMALL, LARGE):
            request = cog(shape)
            expected = sum(told.estimate(stage, request).duration_s for stage in a_cog().stages)
            assert hears.latency_s(request) == pytest.approx(expected)
            assert hears.knows(request)

    def test_one_with_the_profile_takes_back_what_it_has_told(self) -> None:
        told, hears = a_model(), a_model()
        observe(told, cog(), 2 * 6 * 4.75, degree=8)
        hears.adopt(told.learnt())
        assert hears.latency_s(cog()) == pytest.approx(told.latency_s(cog()))

    def test_one_without_a_profile_tells_only_what_it_has_seen(self) -> None:
        cost = CostModel([a_spec()])
        assert cost.learnt() == ()
        observe(cost, a_request(), 3.0)
        assert [lesson.stage.kind for lesson in cost.learnt()] == [DIFFUSE]


class TestMoves:
    def test_loads_take_what_the_links_allow(self) -> None:
        cost = a_model()
        encoder = StageKey(HUNYUAN, ENCODE)
        assert cost.load_s(encoder, from_peer=False) == pytest.approx(0.64)
        assert cost.load_s(encoder, from_peer=True) == pytest.approx(0.64)

    def test_only_what_moves_costs_a_hand_off(self) -> None:
        cost, request = a_model(), cog()

        def handoffs(kind: StageKind) -> tuple[float, ...]:
            stage = StageKey(COG, kind)
            return tuple(
                cost.handoff_s(stage, request, same_device=device, same_node=node)
                for device, node in ((True, True), (False, True), (False, False))
            )

        assert handoffs(ENCODE) == (0.0, 0.0, 0.0)
        assert handoffs(DIFFUSE) == handoffs(DECODE) == (0.0, 0.01, 0.01)

    def test_latents_grow_with_the_video_and_texts_do_not(self) -> None:
        cost = a_model()
        small, large = cog(SMALL), cog(LARGE)
        sizes = {k: cost.handoff_bytes(StageKey(COG, k), large) for k in StageKind}
        assert sizes == {ENCODE: 3_702_784, DIFFUSE: LARGE.pixels // 8, DECODE: 0}
        assert cost.handoff_bytes(StageKey(COG, ENCODE), small) == sizes[ENCODE]

    def test_a_change_of_team_has_its_price(self) -> None:
        assert a_model().change_s == 0.03

    def test_without_a_profile_moves_count_as_free(self) -> None:
        cost, request = CostModel([a_spec()]), a_request()
        stage = StageKey(MODEL, DECODE)
        moved = cost.handoff_s(stage, request, same_device=False, same_node=False)
        assert (moved, cost.handoff_bytes(StageKey(MODEL, DIFFUSE), request)) == (0.0, 0)
        assert (cost.load_s(stage, from_peer=False), cost.change_s) == (0.0, 0.0)


class TestLearning:
    def test_a_profile_is_drawn_towards_what_is_measured(self) -> None:
        cost = a_model()
        observe(cost, cog(SMALL), 2 * 6 * 1.19)
        assert cost.step_s(COG, SMALL, 1) == pytest.approx(1.3 * 1.19)
        for _ in range(40):
            observe(cost, cog(SMALL), 2 * 6 * 1.19)
        assert cost.step_s(COG, SMALL, 1) == pytest.approx(2 * 1.19, rel=1e-3)

    def test_what_one_degree_teaches_holds_for_all(self) -> None:
        cost = a_model()
        observe(cost, cog(SMALL), 2 * 6 * 0.3, degree=8)
        assert cost.step_s(COG, SMALL, 2) == pytest.approx(1.3 * 0.763)
        assert cost.estimate(StageKey(COG, DIFFUSE), cog(SMALL)).measured

    def test_other_sizes_and_stages_are_not_touched(self) -> None:
        cost = a_model()
        observe(cost, cog(SMALL), 100.0)
        assert cost.step_s(COG, LARGE, 1) == 30.5
        assert not cost.estimate(StageKey(COG, DECODE), cog(SMALL)).measured

    def test_an_execution_that_stopped_early_is_judged_by_its_steps(self) -> None:
        cost = a_model()
        observe(cost, cog(SMALL), 2 * 1.19, steps_done=2)
        assert cost.step_s(COG, SMALL, 1) == pytest.approx(1.19)

    def test_a_peak_above_the_profile_counts_for_its_degree(self) -> None:
        cost, stage = a_model(), StageKey(COG, DIFFUSE)
        before = cost.estimate(stage, cog(SMALL), degree=2)
        observe(cost, cog(SMALL), 7.0, peak=30 * 10**9)
        assert cost.estimate(stage, cog(SMALL)).activation_bytes == 30 * 10**9
        after = cost.estimate(stage, cog(SMALL), degree=2)
        assert after.activation_bytes == before.activation_bytes

    def test_a_model_told_not_to_learn_does_not(self) -> None:
        cost = a_model(learn=False)
        observe(cost, cog(SMALL), 100.0, peak=10**12)
        assert cost.estimate(StageKey(COG, DIFFUSE), cog(SMALL)) == a_model().estimate(
            StageKey(COG, DIFFUSE), cog(SMALL)
        )

    def test_any_number_of_sizes_is_kept_in_bounded_memory(self) -> None:
        cost = CostModel([a_spec()])
        for side in range(1, 6000):
            request = a_request(shape=Shape(side, 64))
            cost.estimate(StageKey(MODEL, DIFFUSE), request)
            cost.reference_s(request)
        assert len(cost._classes) <= 4096
        assert len(cost._references) <= 1024
