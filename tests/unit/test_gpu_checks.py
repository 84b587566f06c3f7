"""The GPU checks on a CPU: the same code on a tiny model, and what is said without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import run


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_report_says_why_nothing_was_measured(tmp_path: Path) -> None:
    run.main(["--out", str(tmp_path / "gpu.json")])
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert "no CUDA device" in report["not_measured"]
    assert "checks" not in report


@pytest.mark.filterwarnings("ignore")
def test_a_tiny_model_goes_through_every_stage_check(tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--tiny", "--parts", "stages", "--only", "sd3"]
    report = run.main([*arguments, "--out", str(tmp_path / "gpu.json")])
    found = report["checks"]["stages of sd3"]["result"]
    assert [row["batch"] for row in found["encode"]["batches"]] == [1, 2, 4]
    assert found["diffuse"]["sizes"][0]["median_s"] > 0
    assert found["decode"]["sizes"][0]["size"] == "64x64"
    assert found["copies"]["of_limit"] > 0


def test_hand_offs_go_through_a_window_of_another_process_and_survive_it(tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--tiny", "--parts", "handoffs"]
    report = run.main([*arguments, "--out", str(tmp_path / "gpu.json")])
    found = report["checks"]["hand-offs by window"]["result"]
    assert found["by_window"]
    assert found["survives_a_kill"]
    assert all(row["equal"] and row["window_s"] > 0 for row in found["sizes"])


def test_a_check_that_fails_or_comes_too_late_is_told_and_hides_no_other() -> None:
    report = run.Report(minutes=1.0)
    assert report.check("broken", lambda: 1 / 0) is None
    assert report.check("whole", lambda: 7) == 7
    assert "ZeroDivisionError" in report.content["broken"]["failed"]
    late = run.Report(minutes=-1.0)
    assert late.check("late", lambda: 7) is None
    assert "left_out" in late.content["late"]
