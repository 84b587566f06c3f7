"""Interpolation and corrections stay sane for any profile, size and report."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.messages import StageReport
from engine.types import ModelId, NodeId, Shape, StageKey, StageKind, StageTask, TaskId
from schedulers.cost import CostModel
from schedulers.interpolation import Curve, Knot
from schedulers.profile import Provenance, load_profile, specs_of
from tests.support.builders import a_request

L20 = load_profile("l20")
MODELS = st.sampled_from([ModelId(name) for name in L20.models])
DEGREES = st.sampled_from([1, 2, 4, 8])
SIDES = st.integers(1, 8192)
FRAMES = st.integers(1, 300)

pixels = st.integers(1, 10**9)
points = st.dictionaries(pixels, st.floats(1e-3, 1e3), min_size=1, max_size=8)


def a_curve(points: dict[int, float], *, quadratic: bool) -> Curve:
    knots = [Knot(n, value, Provenance.MEASURED) for n, value in points.items()]
    return Curve(knots, quadratic=quadratic)


@given(points=points, one=pixels, other=pixels, quadratic=st.booleans())
def test_more_pixels_never_cost_less(
    *, points: dict[int, float], one: int, other: int, quadratic: bool
) -> None:
    curve = a_curve(points, quadratic=quadratic)
    small, large = sorted((one, other))
    assert 0.0 <= curve.at(small) <= curve.at(large) * (1 + 1e-6)


@given(points=points, quadratic=st.booleans())
def test_rising_points_are_met_exactly(*, points: dict[int, float], quadratic: bool) -> None:
    rising = dict(zip(sorted(points), sorted(points.values()), strict=True))
    curve = a_curve(rising, quadratic=quadratic)
    for n, value in rising.items():
        assert curve.at(n) == pytest.approx(value)


@given(points=points, factor=st.floats(1.0, 1e3), quadratic=st.booleans())
def test_beyond_the_points_growth_is_between_linear_and_quadratic(
    *, points: dict[int, float], factor: float, quadratic: bool
) -> None:
    curve, first, last = a_curve(points, quadratic=quadratic), min(points), max(points)
    above, below = int(last * factor), max(1, int(first / factor))
    up, down = curve.extrapolation(above), curve.extrapolation(below)
    assert (up, down) == (above / last, below / first)
    least = up if quadratic else 1.0
    assert least * (1 - 1e-9) <= curve.at(above) / curve.at(last) <= up**2 * (1 + 1e-9)
    assert down**2 * (1 - 1e-9) <= curve.at(below) / curve.at(first) <= 1 + 1e-9


@given(MODELS, DEGREES, st.tuples(SIDES, SIDES, FRAMES), st.tuples(SIDES, SIDES, FRAMES))
def test_sizes_that_were_not_profiled_are_in_the_order_of_their_pixels(
    model: ModelId, degree: int, one: tuple[int, int, int], other: tuple[int, int, int]
) -> None:
    cost = CostModel(specs_of(L20), L20)
    profiled = {shape.pixels for shape in L20.models[model].shapes}
    small, large = sorted((Shape(*one), Shape(*other)), key=lambda shape: shape.pixels)
    if {small.pixels, large.pixels} & profiled:
        return
    for kind in StageKind:
        stage = StageKey(model, kind)
        less, more = (
            cost.estimate(stage, a_request(model=model, shape=shape), degree=degree)
            for shape in (small, large)
        )
        assert 0 < less.duration_s <= more.duration_s * (1 + 1e-9)
        assert 0 <= less.activation_bytes <= more.activation_bytes


@given(
    MODELS,
    DEGREES,
    st.lists(st.tuples(st.floats(0, 1e9), st.integers(0, 10**12)), min_size=1, max_size=8),
)
def test_corrections_are_bounded_whatever_is_reported(
    model: ModelId, degree: int, reports: list[tuple[float, int]]
) -> None:
    cost, shape = CostModel(specs_of(L20), L20), L20.models[model].shapes[0]
    request = a_request(model=model, shape=shape)
    stage = StageKey(model, StageKind.DIFFUSE)
    before = cost.step_s(model, shape, degree)
    for index, (run_s, peak) in enumerate(reports):
        task = StageTask(
            id=TaskId(f"t{index}"),
            request=request,
            node=NodeId("n"),
            stage=stage,
            image_index=0,
            inputs=(),
            sequence=0,
            attempt=1,
            ready_s=0.0,
        )
        report = StageReport(
            task=task.id,
            kind=stage.kind,
            receive_s=0.0,
            run_s=run_s,
            send_s=0.0,
            peak_memory_bytes=peak,
        )
        cost.observe(task, report, degree=degree)
        after = cost.step_s(model, shape, degree)
        assert 0.2 * 0.999 <= after / before <= 5.0 * 1.001
        assert cost.estimate(stage, request, degree=degree).duration_s == pytest.approx(
            request.steps * after
        )
