"""Which changes of a model folder make a measured profile worthless."""

from __future__ import annotations

import json
from pathlib import Path

from engine.fingerprint import fingerprint


def a_folder(root: Path, *, numbers: bytes = b"\0" * 8, width: int = 2) -> Path:
    root.mkdir()
    (root / "model_index.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [width], "data_offsets": [0, 8]}}).encode()
    content = len(header).to_bytes(8, "little") + header + numbers
    (root / "weights.safetensors").write_bytes(content)
    return root


def test_copies_and_other_trainings_of_one_architecture_are_the_same(tmp_path: Path) -> None:
    first = fingerprint(a_folder(tmp_path / "a"))
    assert fingerprint(a_folder(tmp_path / "b")) == first
    assert fingerprint(a_folder(tmp_path / "c", numbers=b"\1" * 8)) == first


def test_other_shapes_and_other_configurations_differ(tmp_path: Path) -> None:
    first = fingerprint(a_folder(tmp_path / "a"))
    assert fingerprint(a_folder(tmp_path / "b", width=3)) != first
    changed = a_folder(tmp_path / "c")
    (changed / "model_index.json").write_text('{"steps": 1}')
    assert fingerprint(changed) != first
