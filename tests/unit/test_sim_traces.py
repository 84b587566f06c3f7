"""Traces are read field by field, and a mistake is named by file, line and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.types import Shape
from schedulers.errors import TraceError
from schedulers.planner.demand import ClassDemand
from schedulers.sim.traces import TraceExtent, TraceRow, measure, mix_of, read_trace

HEADER = "arrival_s,height,width,frames,steps"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return tmp_path / "trace.csv"


def test_required_columns_suffice(written: Path) -> None:
    written.write_text(f"{HEADER}\n0.0,768,1360,65,50\n0.667,768,432,17,50\n")
    first, second = read_trace(written)
    assert first == TraceRow(arrival_s=0.0, height=768, width=1360, frames=65, steps=50)
    assert (second.arrival_s, second.tenant, second.model) == (0.667, "default", None)


def test_optional_columns_in_any_order(written: Path) -> None:
    header, line = (
        f"model,priority,{HEADER},slo_scale,tenant,min_steps",
        "sd3,2,1e1,64,64,1,20,1.5,a,8",
    )
    written.write_text(f"{header}\n{line}\n")
    (row,) = read_trace(written)
    assert (row.model, row.tenant, row.slo_scale, row.priority) == ("sd3", "a", 1.5, 2)
    assert (row.arrival_s, row.min_steps) == (10.0, 8)


def test_empty_optional_fields_mean_the_default(written: Path) -> None:
    written.write_text(f"{HEADER},model,tenant,slo_scale,priority,min_steps\n0,64,64,1,20,,,,,\n")
    (row,) = read_trace(written)
    assert row == TraceRow(arrival_s=0.0, height=64, width=64, frames=1, steps=20)


def test_a_byte_order_mark_windows_lines_and_blank_lines_are_borne(written: Path) -> None:
    written.write_bytes(f"\ufeff{HEADER}\r\n\r\n0,64,64,1,20\r\n".encode())
    assert len(list(read_trace(written))) == 1


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("arrival_s", "-1", "at least 0"),
        ("arrival_s", "nan", "a number"),
        ("arrival_s", "inf", "a number"),
        ("arrival_s", "1e999", "a number"),
        ("arrival_s", "", "a number"),
        ("height", "0", "whole number from 1"),
        ("height", "7.5", "whole number from 1"),
        ("width", "1_000", "whole number from 1"),
        ("frames", "-3", "whole number from 1"),
        ("steps", "fifty", "whole number from 1"),
        ("slo_scale", "0", "above 0"),
        ("slo_scale", "x", "above 0"),
        ("priority", "high", "whole number"),
        ("min_steps", "0", "from 1 to the line's steps"),
        ("min_steps", "2", "from 1 to the line's steps"),
    ],
)
def test_a_wrong_field_is_named(written: Path, field: str, value: str, expected: str) -> None:
    good = dict.fromkeys([*HEADER.split(","), "slo_scale", "priority", "min_steps"], "1")
    bad = {**good, field: value}
    written.write_text(f"{','.join(good)}\n{','.join(good.values())}\n{','.join(bad.values())}\n")
    with pytest.raises(TraceError) as caught:
        list(read_trace(written))
    message = str(caught.value)
    assert str(written) in message
    assert "line 3" in message
    assert f"field {field}" in message
    assert expected in message
    assert repr(value) in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "column arrival_s is missing"),
        ("arrival_s,height,width,frames\n", "column steps is missing"),
        (f"{HEADER},color\n", "column 'color'"),
        (f"{HEADER},steps\n", "twice"),
        (f"{HEADER}\n", "holds no request"),
        (f"{HEADER}\n1,2,3\n", "3 fields, expected 5"),
        (f"{HEADER}\n1,2,3,4,5,6\n", "6 fields, expected 5"),
        (f'{HEADER}\n"1,2,3,4,5\n', "not CSV"),
        (f"{HEADER}\n5,64,64,1,20\n4,64,64,1,20\n", "sort the file"),
    ],
)
def test_a_malformed_file_is_refused(written: Path, text: str, words: str) -> None:
    written.write_text(text)
    with pytest.raises(TraceError, match=words) as caught:
        list(read_trace(written))
    assert str(written) in str(caught.value)


def test_a_file_that_is_no_text_is_refused(written: Path) -> None:
    written.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match="UTF-8"):
        list(read_trace(written))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"nowhere\.csv: No such file"):
        list(read_trace(tmp_path / "nowhere.csv"))


def test_a_long_wrong_field_is_cut(written: Path) -> None:
    written.write_text(f"{HEADER}\n{'9' * 5000}x,1,1,1,1\n")
    with pytest.raises(TraceError) as caught:
        list(read_trace(written))
    assert len(str(caught.value)) < 400


def test_the_extent_of_a_trace(written: Path) -> None:
    written.write_text(f"{HEADER},model\n0,64,64,1,20,sd3\n7.5,64,64,1,20,\n")
    assert measure(read_trace(written)) == TraceExtent(2, 7.5, frozenset({"sd3", None}))


def test_the_mix_of_a_trace_is_how_often_each_size_comes_with_its_mean_steps(written: Path) -> None:
    lines = ("0,64,32,1,20,sd3", "1,64,32,1,30,sd3", "2,64,32,1,26,sd3", "3,8,8,9,4,cog")
    written.write_text("\n".join([f"{HEADER},model", *lines]) + "\n")
    mix = mix_of(read_trace(written))
    assert mix.is_relative
    assert mix.classes == (
        ClassDemand("cog", Shape(8, 8, 9), 4, 1),
        ClassDemand("sd3", Shape(32, 64), 25, 3),
    )
