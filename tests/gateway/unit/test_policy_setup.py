"""What a server asks of its policy."""

from __future__ import annotations

from pathlib import Path

from engine.types import DeviceId
from gateway.benching import switched
from gateway.runner import setup_of
from gateway.settings import Settings
from schedulers.cost import CostModel
from tests.support.fake_engine import spec_of


def test_switches_go_before_what_a_server_does_by_itself(tmp_path: Path) -> None:
    switches = {"prefetch": False, "elders-per-16-nodes": 0}
    settings = Settings(models=(), data_dir=tmp_path, solver="ilp", switches=switches, step_batch=4)
    specs = [spec_of()]
    knobs = setup_of(settings, specs, CostModel(specs), None, devices=(DeviceId("cpu:0"),)).knobs()
    assert (knobs.solver, knobs.prefetch, knobs.elders_per_16_nodes) == ("ilp", False, 0)
    assert (knobs.merge, knobs.batch, knobs.step_batch) == (True, 1, 4)  # a server's own


def test_a_bench_simulates_with_the_switches_that_it_ran_with(tmp_path: Path) -> None:
    ours = Settings(models=(), data_dir=tmp_path, switches={"preempt": False})
    assert switched(ours)["preempt"] is False
    assert switched(ours)["merge"] is True
    assert switched(Settings(models=(), data_dir=tmp_path, policy="b3")) == {}
