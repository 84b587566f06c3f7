"""Every answer is one that the OpenAPI document tells of: schemathesis against a live server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.painted_server import running_painted_server

SETTINGS = Path(__file__).parent / "schemathesis.toml"


def violations(data_dir: Path, *flags: str) -> str:
    """Have schemathesis ask; return what it reports, or nothing if it found no fault."""
    with running_painted_server(data_dir) as url:
        run = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli"),
                *("--config-file", str(SETTINGS), "run", f"{url}/schema"),
                *("--no-color", "--continue-on-failure", "--generation-deterministic"),
                *("--suppress-health-check", "all", "--warnings", "off", *flags),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    return "" if run.returncode == 0 else run.stdout + run.stderr


def test_no_answer_contradicts_the_document(tmp_path: Path) -> None:
    assert violations(tmp_path, "--phases", "fuzzing", "--max-examples", "5") == ""


@pytest.mark.slow
def test_no_answer_of_thousands_contradicts_the_document(tmp_path: Path) -> None:
    assert violations(tmp_path, "--max-examples", "100", "--max-time", "540") == ""
