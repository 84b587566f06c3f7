"""Errors that travel between nodes, and what tells two copies of a model apart."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine.errors import (
    EngineError,
    NotFiniteError,
    RequestCancelledError,
    StageFailedError,
    TeamBrokenError,
    WorkerLostError,
)
from engine.fingerprint import fingerprint, identity
from engine.node_wire import FromNode, heard, told
from engine.types import DeviceId

TEAM = (DeviceId("b/cpu:0"),)


@pytest.mark.parametrize(
    "error",
    [
        StageFailedError("no memory", retryable=True),
        StageFailedError("bad weights", retryable=False),
        NotFiniteError("NaN"),
        WorkerLostError("died", devices=TEAM),
        WorkerLostError("died before", began=False),
        TeamBrokenError("a peer died"),
        RequestCancelledError("cancelled"),
    ],
)
def test_an_error_arrives_as_what_it_was(error: EngineError) -> None:
    sent = msgspec.msgpack.encode(told(7, error))
    failed = msgspec.msgpack.decode(sent, type=FromNode)
    arrived = heard(failed)  # type: ignore[arg-type]
    assert (type(arrived), str(arrived), vars(arrived)) == (type(error), str(error), vars(error))


def a_model(folder: Path, numbers: bytes) -> Path:
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    header = b"{}      "
    content = len(header).to_bytes(8, "little") + header + numbers
    (folder / "weights.safetensors").write_bytes(content)
    return folder


def test_copies_of_a_model_are_alike_and_another_training_is_not(tmp_path: Path) -> None:
    one = a_model(tmp_path / "one", bytes(1 << 20))
    copy = a_model(tmp_path / "copy", bytes(1 << 20))
    other = a_model(tmp_path / "other", b"\1" * (1 << 20))
    assert identity(one) == identity(copy)
    assert identity(one) != identity(other)
    assert fingerprint(one) == fingerprint(other)  # as fast, and as large
