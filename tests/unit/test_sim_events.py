"""The event file has the published schema, and comes back as it was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.types import DeviceId, ModelId, RequestId, StageKind
from schedulers.errors import TraceError
from schedulers.sim.audit import audit
from schedulers.sim.events import (
    EventFile,
    FinishEvent,
    LoadEvent,
    RejectEvent,
    RunEvent,
    SwitchEvent,
    read_events,
)
from tests.support.histories import history

FIELDS = {
    "cluster": {"devices"},
    "arrive": {"t", "request", "model", "height", "width", "frames", "steps", "deadline"},
    "run": {
        "start",
        "end",
        "requests",
        "stage",
        "devices",
        "degree",
        "step_from",
        "step_to",
        "activation_bytes",
        "outcome",
    },
    "load": {"start", "end", "device", "model", "stage", "bytes"},
    "evict": {"start", "end", "device", "model", "stage", "bytes"},
    "switch": {"t", "version"},
    "reject": {"t", "request", "reason"},
    "finish": {"t", "request", "on_time"},
    "device_lost": {"t", "device"},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def test_what_is_written_is_read_again_and_passes_the_audit(path: Path) -> None:
    events = history(seed=11, requests=20)
    with EventFile(path) as file:
        for event in events:
            file.write(event)
    assert list(read_events(path)) == events
    assert audit(read_events(path)) == []


def test_every_line_is_one_object_with_the_published_fields(path: Path) -> None:
    with EventFile(path) as file:
        for event in history(seed=11, requests=20):
            file.write(event)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["kind"] == "cluster"
    assert {line["kind"] for line in lines} == set(FIELDS)
    for line in lines:
        assert FIELDS[line["kind"]] | {"kind"} <= set(line)
    (first, *_) = lines[0]["devices"]
    assert set(first) == {"id", "node", "memory_bytes", "stages"}
    assert set(first["stages"][0]) == {"model", "stage", "bytes"}


def test_a_run_looks_as_documented(path: Path) -> None:
    run = RunEvent(
        start=1.0,
        end=2.5,
        requests=(RequestId("r1"), RequestId("r2")),
        stage=StageKind.DIFFUSE,
        devices=(DeviceId("g0"), DeviceId("g1")),
        degree=2,
        step_from=0,
        step_to=4,
        activation_bytes=7,
    )
    with EventFile(path) as file:
        file.write(run)
    assert path.read_text() == (
        '{"kind":"run","start":1.0,"end":2.5,"requests":["r1","r2"],"stage":"diffuse",'
        '"devices":["g0","g1"],"degree":2,"step_from":0,"step_to":4,"activation_bytes":7,'
        '"outcome":"done","purpose":"main"}\n'
    )


def test_a_short_line_after_a_long_one_has_no_rest_of_it(path: Path) -> None:
    with EventFile(path) as file:
        file.write(RejectEvent(1.0, RequestId("r"), "because of this and that and more"))
        file.write(SwitchEvent(2.0, 1))
    assert json.loads(path.read_text().splitlines()[1]) == {
        "kind": "switch",
        "t": 2.0,
        "version": 1,
        "stages": {},
        "why": "",
    }


def test_loads_and_evictions_are_told_apart(path: Path) -> None:
    load = LoadEvent(
        start=0.0,
        end=1.0,
        device=DeviceId("g0"),
        model=ModelId("m"),
        stage=StageKind.DECODE,
        bytes=5,
    )
    with EventFile(path) as file:
        file.write(load)
    assert list(read_events(path)) == [load]


@pytest.mark.parametrize(
    "line",
    ["{}", "[]", '{"kind":"lunch"}', '{"kind":"switch","t":"x","version":1}', "{", "", "\xff"],
)
def test_a_line_that_is_no_event_is_named(path: Path, line: str) -> None:
    with EventFile(path) as file:
        file.write(FinishEvent(1.0, RequestId("r"), on_time=True))
    path.write_bytes(path.read_bytes() + line.encode("latin-1") + b"\n")
    with pytest.raises(TraceError, match=r"events\.jsonl, line 2: not an event"):
        list(read_events(path))


def test_a_missing_event_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"nowhere\.jsonl: No such file"):
        list(read_events(tmp_path / "nowhere.jsonl"))
