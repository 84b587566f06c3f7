"""Demand is the same every time it is drawn, priced by a profile, and enough for a search."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.types import ModelId
from schedulers.errors import ProfileError, TraceError
from schedulers.sim.capacity import Capacity, Trial, asked_gpus, least_nodes
from schedulers.sim.demand import TraceDemand, WorkloadDemand
from schedulers.sim.mixes import COG, HUNYUAN, SD3
from schedulers.sim.phases import Setting
from schedulers.sim.price import gpu_seconds
from schedulers.sim.traces import TraceRow
from schedulers.sim.workloads import workload

COG_LONG = TraceRow(arrival_s=0.0, height=768, width=1360, frames=81, steps=6, model=COG)


def demand(**changes: object) -> WorkloadDemand:
    options: dict[str, object] = {"models": [COG], "gpus": 128, **changes}
    price = gpu_seconds("l20", options["models"])  # type: ignore[arg-type]
    return WorkloadDemand(workload("poisson"), gpu_seconds=price, **options)  # type: ignore[arg-type]


def test_a_request_is_priced_at_its_cheapest_feasible_degree() -> None:
    price = gpu_seconds("l20", [COG])
    assert price(COG_LONG) == pytest.approx(0.15 + 6 * 8 * 4.75 + 10, rel=0.02)


@pytest.mark.parametrize(("model", "load"), [(COG, 0.93), (HUNYUAN, 0.80)])
def test_published_rates_have_the_known_loads_on_the_l20_profile(
    model: ModelId, load: float
) -> None:
    setting = Setting(model=model, gpus=128, gpu_seconds=gpu_seconds("l20", [model]))
    assert workload("hetu").offered_load(setting) == pytest.approx(load, abs=0.005)


@pytest.mark.parametrize(("model", "low", "high"), [(COG, 0.75, 0.85), (HUNYUAN, 0.65, 0.75)])
def test_the_five_phases_ask_for_a_plausible_load(model: ModelId, low: float, high: float) -> None:
    setting = Setting(model=model, gpus=8, gpu_seconds=gpu_seconds("l20", [model]))
    assert low < workload("five-phase").offered_load(setting) < high


def test_a_model_that_the_profile_lacks_is_refused() -> None:
    with pytest.raises(ProfileError, match="wan"):
        gpu_seconds("l20", ["wan"])


def test_a_workload_gives_the_same_rows_every_time() -> None:
    drawn = demand(seed=3, duration_s=60.0)
    assert list(drawn.rows()) == list(drawn.rows())
    assert (drawn.label, drawn.duration_s) == ("poisson", 60.0)


def test_models_share_the_gpus_equally_and_arrive_in_order() -> None:
    both = demand(models=[COG, SD3], duration_s=300.0)
    rows = list(both.rows())
    assert rows == sorted(rows, key=lambda row: row.arrival_s)
    assert both.rate_rps == pytest.approx((demand().rate_rps + demand(models=[SD3]).rate_rps) / 2)


def test_a_trace_is_scaled_and_its_requests_get_their_model(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,height,width,frames,steps\n0,64,64,1,20\n6,64,64,1,20\n")
    scaled = TraceDemand(path, models=["sd3"], rate_scale=2.0, steps=4)
    assert [(row.arrival_s, row.model, row.steps) for row in scaled.rows()] == [
        (0.0, "sd3", 4),
        (3.0, "sd3", 4),
    ]
    assert (scaled.label, scaled.duration_s) == ("t.csv", 3.0)


def test_a_mistake_at_the_end_of_a_trace_is_found_at_once(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,height,width,frames,steps\n0,64,64,1,20\n6,64,64,1,x\n")
    with pytest.raises(TraceError, match="line 3, field steps"):
        TraceDemand(path, models=["sd3"])


def test_asked_gpus_is_work_over_time() -> None:
    rows = [COG_LONG, COG_LONG]
    assert asked_gpus(rows, lambda _: 30.0, 20.0) == 3.0


@pytest.mark.parametrize("first", [1, 2, 5, 6, 11])
@pytest.mark.parametrize("needed", [1, 2, 5, 8, 9])
def test_the_least_cluster_is_found_from_any_start(first: int, needed: int) -> None:
    found = least_nodes(lambda n: min(1.0, n / needed), target=1.0, first=first, most=16)
    assert found.nodes == needed
    tried = [trial.nodes for trial in found.trials]
    assert needed in tried
    assert needed == 1 or needed - 1 in tried
    assert len(tried) == len(set(tried)) <= 8


def test_a_cluster_beyond_the_limit_is_not_found() -> None:
    found = least_nodes(lambda _: 0.5, target=0.9, first=3, most=7)
    assert found == Capacity(None, (Trial(3, 0.5), Trial(6, 0.5), Trial(7, 0.5)))
