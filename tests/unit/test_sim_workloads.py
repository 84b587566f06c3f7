"""Workloads are seeded, sorted, and ask for the load that they state."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from engine.types import ModelId
from schedulers.errors import TraceError
from schedulers.sim.mixes import COG, FLUX, HUNYUAN, MIXES, SD3
from schedulers.sim.phases import Setting
from schedulers.sim.traces import TraceRow
from schedulers.sim.workloads import WORKLOADS, workload

MODELS = tuple(MIXES)


def gpu_seconds(row: TraceRow) -> float:
    """A cost that grows with the request, as a profile's does."""
    return 0.1 + row.steps * row.height * row.width * row.frames * 1e-7


def setting(model: ModelId = COG, **changes: object) -> Setting:
    return Setting(**{"model": model, "gpus": 128, "gpu_seconds": gpu_seconds, **changes})  # type: ignore[arg-type]


def loaded(rows: list[TraceRow], gpus: int, duration_s: float) -> float:
    return sum(gpu_seconds(row) for row in rows) / (gpus * duration_s)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", WORKLOADS)
def test_arrivals_are_sorted_and_inside_the_duration(name: str, model: ModelId) -> None:
    recipe = workload(name)
    rows = list(recipe.rows(setting(model, gpus=8)))
    assert rows
    assert all(before.arrival_s <= after.arrival_s for before, after in pairwise(rows))
    assert rows[0].arrival_s >= 0
    assert rows[-1].arrival_s < recipe.duration_s + 0.001


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_same_seed_gives_the_same_requests(name: str) -> None:
    recipe = workload(name)
    first, again, other = (list(recipe.rows(setting(gpus=8, seed=s))) for s in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", WORKLOADS)
def test_the_load_of_the_requests_is_the_load_that_is_stated(name: str, model: ModelId) -> None:
    recipe = workload(name)
    enough = recipe.rate_rps(setting(model, gpus=8)) * recipe.duration_s / 5000
    duration_s = recipe.duration_s * max(1, round(1 / enough))  # whole days and hours
    chosen = setting(model, gpus=8, seed=3, duration_s=duration_s)
    realised = loaded(list(recipe.rows(chosen)), 8, duration_s)
    assert realised == pytest.approx(recipe.offered_load(chosen), rel=0.1)


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("light", 0.8),
        ("medium", 0.8),
        ("heavy", 0.8),
        ("diurnal", 0.6),
        ("proprietary", 0.7),
        ("bursts", 0.79),
        ("dynamic", 4.6 / 6),
    ],
)
def test_workloads_of_ours_have_a_fixed_load_on_any_cluster(name: str, load: float) -> None:
    recipe = workload(name)
    for gpus in (8, 128):
        assert recipe.offered_load(setting(gpus=gpus)) == pytest.approx(load)


def test_hetu_is_like_the_published_cogvideox_trace() -> None:
    rows = list(workload("hetu").rows(setting(COG)))
    sizes = Counter((row.height, row.width, row.frames) for row in rows)
    assert len(rows) == 2700
    assert [row.arrival_s for row in rows[:4]] == [0.0, 0.667, 1.333, 2.0]
    assert len(sizes) == 8
    assert set(sizes.values()) == {337, 338}
    assert {row.steps for row in rows} == {6}


@pytest.mark.parametrize(("model", "rate_rps"), [(COG, 1.5), (FLUX, 2.625), (HUNYUAN, 0.7114)])
def test_hetu_keeps_the_published_rate_per_gpu(model: ModelId, rate_rps: float) -> None:
    hetu = workload("hetu")
    assert hetu.rate_rps(setting(model)) == pytest.approx(rate_rps)
    assert hetu.rate_rps(setting(model, gpus=32)) == pytest.approx(rate_rps / 4)


def test_hetu_of_sd3_has_no_published_rate_and_takes_a_load() -> None:
    assert workload("hetu").offered_load(setting(SD3, gpus=32)) == pytest.approx(0.8)


def test_poisson_keeps_rate_and_sizes_of_hetu() -> None:
    poisson = workload("poisson")
    assert poisson.rate_rps(setting()) == workload("hetu").rate_rps(setting())
    assert len({(row.width, row.frames) for row in poisson.rows(setting())}) == 8


def test_rate_scale_multiplies_the_rate_and_not_the_duration() -> None:
    twice = list(workload("hetu").rows(setting(rate_scale=2.0)))
    assert len(twice) == 5400
    assert twice[-1].arrival_s < 1800


def test_steps_and_duration_can_be_chosen() -> None:
    rows = list(workload("hetu").rows(setting(steps=50, duration_s=60.0)))
    assert len(rows) == 90
    assert {row.steps for row in rows} == {50}


def test_light_asks_for_smaller_sizes_than_heavy() -> None:
    def mean_voxels(name: str) -> float:
        rows = list(workload(name).rows(setting(seed=5)))
        return sum(row.height * row.width * row.frames for row in rows) / len(rows)

    assert mean_voxels("light") < mean_voxels("medium") < mean_voxels("heavy")


def test_bursts_and_clumps_are_less_even_than_poisson() -> None:
    def dispersion(name: str) -> float:
        rows = workload(name).rows(setting(SD3, gpus=2, seed=7, duration_s=18_000.0))
        counts = Counter(int(row.arrival_s // 30) for row in rows)
        mean = sum(counts.values()) / 600
        return sum((counts[i] - mean) ** 2 for i in range(600)) / 600 / mean

    assert dispersion("poisson") < 1.3
    assert dispersion("bursts") > 3
    assert dispersion("proprietary") > 3


def test_the_diurnal_rate_is_highest_in_the_middle_of_the_day() -> None:
    rows = list(workload("diurnal").rows(setting(SD3, seed=1)))
    thirds = Counter(int(row.arrival_s // 600) for row in rows)
    assert thirds[1] > 1.5 * thirds[0]
    assert thirds[1] > 1.5 * thirds[2]


def test_five_phases_have_the_published_rates_and_mix_on_eight_gpus() -> None:
    recipe = workload("five-phase")
    phases = recipe.phases(setting(COG, gpus=8), 22)
    assert [phase.share * 60 for phase in phases] == pytest.approx([10, 15, 15, 10, 10])
    assert [phase.rate_rps * 60 for phase in phases] == pytest.approx([0.8, 1.4, 2.4, 1.2, 0.6])
    assert phases[3].weights == (0.2, 0.35, 0.45)
    assert recipe.duration_s == 3600


@pytest.mark.parametrize(("model", "steps"), [(COG, 22), (HUNYUAN, 12)])
def test_five_phase_has_steps_of_its_own(model: ModelId, steps: int) -> None:
    rows = list(workload("five-phase").rows(setting(model, gpus=8)))
    assert {row.steps for row in rows} == {steps}
    assert len({(row.height, row.width, row.frames) for row in rows}) == 3


@pytest.mark.parametrize("model", [SD3, FLUX])
def test_five_phases_of_images_are_scaled_to_a_plausible_load(model: ModelId) -> None:
    assert workload("five-phase").offered_load(setting(model, gpus=8)) == pytest.approx(0.75)


def test_an_unknown_workload_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TraceError, match=r"'rush'.*hetu.*five-phase"):
        workload("rush")


def test_a_model_without_a_mix_is_refused() -> None:
    with pytest.raises(TraceError, match=r"'wan'.*sd3"):
        next(workload("hetu").rows(setting(ModelId("wan"))))


def test_drafts_ask_for_the_same_work_in_many_more_requests_of_few_steps() -> None:
    recipe = workload("drafts")
    rows = list(recipe.rows(setting(gpus=128)))
    phases = [[r for r in rows if 900 * i <= r.arrival_s < 900 * (i + 1)] for i in range(3)]
    assert [{row.steps for row in phase} for phase in phases] == [{18}, {2}, {18}]
    loads = [loaded(phase, 128, 900.0) for phase in phases]
    assert loads == pytest.approx([0.8] * 3, rel=0.15)
    assert len(phases[1]) > 4 * max(len(phases[0]), len(phases[2]))


def test_a_handover_moves_the_load_from_one_model_to_the_other() -> None:
    recipe = workload("handover")

    def loads(turn: int) -> list[float]:
        rows = list(recipe.rows(setting(gpus=128, turn=turn)))
        parts = [[r for r in rows if 900 * i <= r.arrival_s < 900 * (i + 1)] for i in range(3)]
        return [loaded(part, 128, 900.0) for part in parts]

    assert loads(0) == pytest.approx([1.12, 0.28, 1.12], rel=0.15)
    assert loads(1) == pytest.approx([0.28, 1.12, 0.28], rel=0.15)
