"""Whatever bytes a trace holds, reading gives sound rows or a TraceError that names the file."""

from __future__ import annotations

import math
import tempfile
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from schedulers.errors import TraceError
from schedulers.sim.traces import OPTIONAL, REQUIRED, TraceRow, read_trace

CELLS = st.one_of(
    st.integers(-3, 10**12).map(str),
    st.floats().map(str),
    st.sampled_from(["", " ", "1_0", "٣", "0x1", "1e5", "+7", '"', "nan", "sd3", "\0", "1,2"]),
    st.text(max_size=8),
)
LINES = st.lists(CELLS, max_size=10).map(",".join)
HEADERS = st.one_of(
    st.permutations([*REQUIRED, *OPTIONAL]).map(",".join),
    st.permutations(REQUIRED).map(",".join),
    LINES,
)


def read(content: bytes) -> list[TraceRow] | str:
    """Return the rows, or what is said about the trace; no other exception than TraceError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.csv"
        path.write_bytes(content)
        try:
            return list(read_trace(path))
        except TraceError as error:
            return str(error)


def check(content: bytes) -> None:
    rows = read(content)
    if isinstance(rows, str):
        assert "trace.csv" in rows
        return
    assert rows
    assert all(before.arrival_s <= after.arrival_s for before, after in pairwise(rows))
    for row in rows:
        assert math.isfinite(row.arrival_s)
        assert min(row.arrival_s, row.height - 1, row.width - 1, row.frames - 1, row.steps - 1) >= 0
        assert row.slo_scale is None or 0 < row.slo_scale < math.inf
        assert row.tenant


@given(st.binary(max_size=200))
def test_any_bytes(content: bytes) -> None:
    check(content)


@given(HEADERS, st.lists(LINES, max_size=4))
def test_anything_that_looks_like_a_trace(header: str, lines: list[str]) -> None:
    check("\n".join([header, *lines]).encode("utf-8", "surrogatepass"))


@given(st.lists(st.tuples(st.floats(0, 1e6), *[st.integers(1, 10**6)] * 4), min_size=1, max_size=5))
def test_what_is_written_is_read(values: list[tuple[float, int, int, int, int]]) -> None:
    values.sort()
    lines = [",".join(map(str, row)) for row in values]
    rows = read("\n".join([",".join(REQUIRED), *lines]).encode())
    assert isinstance(rows, list)
    assert [(r.arrival_s, r.height, r.width, r.frames, r.steps) for r in rows] == values
