"""`trident profile` on an executor that only counts time: what is measured, kept and written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from engine.executors.fake import FakeExecutor
from engine.pipelines import PipelineSpec
from engine.tiling import Tiling
from engine.types import Assignment, DeviceId, Shape, StageKind
from gateway.high_water import HighWater
from gateway.notebook import Notebook
from gateway.profiler import Profiler, sizes_of
from schedulers.cost import CostModel
from schedulers.expectations import guess
from schedulers.profile import ProfileError, usable
from schedulers.profiles.build import render
from schedulers.profiles.checks import decode_profile
from schedulers.profiles.measured import Figure, LoadFigure, NodeFigure, build_profile
from schedulers.profiles.schema import Measurement, Profile, Provenance
from schedulers.sim.clock import VirtualClock, run_virtual
from tests.support.builders import MODEL, a_request, a_spec, devices

RUN_S = {StageKind.ENCODE: 0.004, StageKind.DIFFUSE: 0.02, StageKind.DECODE: 0.004}
MESSAGE_S = 0.003
MEASUREMENT = Measurement(
    machine="a machine",
    date="2026-01-01T00:00:00+00:00",
    repetitions=2,
    versions={"python": "3"},
    threads=1,
    load_average=0.0,
)
SAID: list[str] = []


CLOCK = VirtualClock()


class Counting(FakeExecutor):
    """Counts launches and can be told to break."""

    def __init__(self, count: int) -> None:
        super().__init__(
            devices(count),
            clock=CLOCK,
            duration_s=lambda launch: RUN_S[launch.task.stage.kind],
            load_s=lambda _stage, _peer: 0.001,
        )
        self.runs, self.breaks_at = 0, 1 << 30

    async def run(self, assignment: Assignment) -> Any:
        self.runs += 1
        if self.runs > self.breaks_at:
            raise KeyboardInterrupt
        await CLOCK.sleep(MESSAGE_S)
        return await super().run(assignment)

    def process_ids(self) -> dict[DeviceId, int]:
        return {}


def measured(
    executor: Counting,
    notebook: Notebook,
    *,
    minutes: float = 10.0,
    degrees: tuple[int, ...] = (1,),
    batches: tuple[int, ...] = (1,),
    spec: PipelineSpec | None = None,
) -> Profiler:
    """Measure in virtual time, which only what the executor does lets pass."""

    async def measure() -> Profiler:
        profiler = Profiler(
            cast("Any", executor),
            notebook,
            degrees=degrees,
            batches=batches,
            repetitions=2,
            minutes=minutes,
            say=lambda what, _share: SAID.append(what),
            now=CLOCK.now,
        )
        await profiler.measure([spec or a_spec()], [Shape(128, 128)])
        return profiler

    return run_virtual(measure())


@pytest.fixture
def notebook(tmp_path: Path) -> Callable[[], Notebook]:
    return lambda: Notebook(tmp_path / "p.part", {"machine": "here"})


def a_profile(figures: list[Any], spec: PipelineSpec | None = None) -> Profile:
    return build_profile(
        figures,
        [spec or a_spec()],
        device="cpu",
        devices=2,
        reserve_bytes=0,
        fingerprints={MODEL: "abc"},
        measurement=MEASUREMENT,
    )


def test_a_measured_profile_is_one_that_can_be_read_and_says_what_was_measured(
    notebook: Callable[[], Notebook],
) -> None:
    pages = notebook()
    measured(Counting(2), pages)
    profile = decode_profile(render(a_profile(pages.figures)).encode(), "written")
    assert profile.measurement == MEASUREMENT
    model = profile.models[MODEL]
    assert set(model.shapes) == {Shape(64, 64), Shape(128, 128)}
    diffuse = model.stages[StageKind.DIFFUSE].entries[0]
    assert diffuse.provenance is Provenance.MEASURED
    assert diffuse.duration_s == pytest.approx(RUN_S[StageKind.DIFFUSE] / a_spec().default_steps)
    assert profile.node.slowdown == pytest.approx((1.0, 1.0))
    assert profile.node.launch_s == pytest.approx(MESSAGE_S)
    assert profile.node.provenance["change_s"] is Provenance.MEASURED


def test_bytes_that_nobody_could_measure_are_guessed_and_say_so(
    notebook: Callable[[], Notebook],
) -> None:
    pages = notebook()
    measured(Counting(1), pages)
    entry = a_profile(pages.figures).models[MODEL].stages[StageKind.DECODE].entries[0]
    likely = guess(a_spec(), StageKind.DECODE, Shape(64, 64), 1).activation_bytes
    assert entry.peak_activation_bytes == likely
    assert entry.memory_provenance is Provenance.ASSUMED


def test_an_interrupted_measurement_goes_on_where_it_stopped(
    notebook: Callable[[], Notebook],
) -> None:
    broken, whole = Counting(1), Counting(1)
    broken.breaks_at = 14
    with pytest.raises(KeyboardInterrupt):
        measured(broken, notebook())
    kept = len(notebook().figures)
    assert kept > 0
    pages = notebook()
    measured(whole, pages)
    fresh = Counting(1)
    measured(fresh, Notebook(Path("/dev/null"), {}))  # which keeps nothing
    assert whole.runs < fresh.runs
    assert a_profile(pages.figures).models[MODEL].shapes == (Shape(64, 64), Shape(128, 128))


def test_figures_of_another_machine_are_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "p.part"
    Notebook(path, {"machine": "here"}).add(
        NodeFigure(memory_bytes=1, change_s=(), slowdown=(1.0,))
    )
    assert len(Notebook(path, {"machine": "here"}).figures) == 1
    assert Notebook(path, {"machine": "there"}).figures == []


def test_without_time_only_the_default_size_is_measured_and_the_rest_is_named(
    notebook: Callable[[], Notebook],
) -> None:
    pages = notebook()
    profiler = measured(Counting(1), pages, minutes=1e-6)
    assert profiler.left_out == ["tiny 128x128, for want of time"]
    assert {f.shape for f in pages.figures if isinstance(f, Figure)} == {Shape(64, 64)}


def test_wider_teams_are_entries_of_their_own(notebook: Callable[[], Notebook]) -> None:
    pages = notebook()
    measured(Counting(2), pages, degrees=(1, 2))
    profile = decode_profile(render(a_profile(pages.figures)).encode(), "written")
    assert CostModel([a_spec()], profile).degrees(MODEL) == (1, 2)


def test_a_decode_that_a_team_can_share_out_is_measured_at_its_degrees(
    notebook: Callable[[], Notebook],
) -> None:
    tiling = Tiling(above_pixels=64 * 64, cell_px=8, tile_cells=8, stride_cells=6)
    spec, pages = a_spec(degrees=(1, 2), tiling=tiling), notebook()
    measured(Counting(4), pages, degrees=(1, 2, 4), spec=spec)
    entries = a_profile(pages.figures, spec).models[MODEL].stages[StageKind.DECODE].entries
    assert spec.decode_parts(Shape(128, 128)) == 9
    assert {(entry.shape, entry.degree) for entry in entries} == {
        (Shape(64, 64), 1),
        *((Shape(128, 128), degree) for degree in (1, 2, 4)),
    }
    runs = Counting(4)
    measured(runs, pages, degrees=(1, 2, 4), spec=spec)
    assert runs.runs == 0  # everything is known


def test_batches_are_entries_of_their_own_and_say_what_another_request_costs(
    notebook: Callable[[], Notebook],
) -> None:
    pages = notebook()
    measured(Counting(1), pages, batches=(1, 2))
    profile = decode_profile(render(a_profile(pages.figures)).encode(), "written")
    stages = profile.models[MODEL].stages
    batches = {kind: [(e.shape, e.batch) for e in stages[kind].entries] for kind in StageKind}
    small, large = Shape(64, 64), Shape(128, 128)
    assert batches[StageKind.ENCODE] == [(None, 1), (None, 2)]
    assert batches[StageKind.DIFFUSE] == [(small, 1), (large, 1), (small, 2), (large, 2)]
    cost = CostModel([a_spec()], profile)
    diffuse = a_spec().stage(StageKind.DIFFUSE)
    alone, together = (cost.estimate(diffuse, a_request(), batch=n).duration_s for n in (1, 2))
    assert together == pytest.approx(alone)  # the twin takes as long for two as for one


def test_without_time_no_batches_are_measured(notebook: Callable[[], Notebook]) -> None:
    profiler = measured(Counting(1), notebook(), minutes=1e-6, batches=(1, 2))
    assert "tiny 64x64, 2 together, for want of time" in profiler.left_out


def test_sizes_are_the_default_and_what_the_model_can_draw() -> None:
    spec = a_spec(default_shape=Shape(256, 256))
    sizes = sizes_of(spec)
    assert sizes[0] == Shape(256, 256)
    assert Shape(512, 512) in sizes
    assert all(shape.width_px % 16 == 0 for shape in sizes)
    assert sizes_of(spec, [Shape(1000, 8)]) == (Shape(256, 256),)


def test_a_profile_of_another_version_of_a_served_model_is_refused() -> None:
    figures = [
        *(a_figure(kind) for kind in StageKind),
        *(a_load(kind) for kind in StageKind),
        NodeFigure(memory_bytes=1 << 30, change_s=(), slowdown=(1.0,)),
    ]
    profile = a_profile(figures)
    assert usable(profile, {MODEL: "abc"}) is profile
    assert usable(profile, {"another": "xyz"}) is profile
    with pytest.raises(ProfileError, match="another version of model tiny"):
        usable(profile, {MODEL: "def"})


def a_figure(kind: StageKind) -> Figure:
    return Figure(
        model=MODEL,
        stage=kind,
        shape=Shape(64, 64),
        degree=1,
        batch=1,
        run_s=(0.1, 0.3, 0.2),
        arrival_s=(0.01,),
        send_s=(0.01,),
        output_bytes=100,
        peak_bytes=0,
    )


def a_load(kind: StageKind) -> Any:
    return LoadFigure(model=MODEL, stage=kind, file_s=1.0, host_s=(0.1,))


def test_the_high_water_mark_of_nobody_is_zero() -> None:
    assert HighWater(None).bytes_since() == 0


def test_the_cost_model_answers_with_the_median() -> None:
    figures = [
        *(a_figure(kind) for kind in StageKind),
        *(a_load(kind) for kind in StageKind),
        NodeFigure(memory_bytes=1 << 30, change_s=(0.5,), slowdown=(1.0,)),
    ]
    cost = CostModel([a_spec()], a_profile(figures))
    assert cost.step_s(MODEL, Shape(64, 64), 1) == 0.2
    assert cost.change_s == 0.5
    decode = a_spec().stage(StageKind.DECODE)
    assert cost.handoff_s(decode, a_request(), same_device=False, same_node=True) == 0.02
