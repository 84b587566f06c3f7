"""Request traces: rows of a CSV file, checked field by field.

A trace knows when requests of which size arrive, and nothing of models' speed or of the cluster.
Files are streamed, so that a trace of weeks takes no memory; arrivals must therefore be sorted.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NoReturn, TypeVar

import msgspec

from engine.types import ModelId, Shape
from schedulers.errors import TraceError
from schedulers.planner.demand import ClassDemand, Demand

T = TypeVar("T")

REQUIRED: Final = ("arrival_s", "height", "width", "frames", "steps")
OPTIONAL: Final = ("model", "tenant", "slo_scale", "priority", "min_steps")
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INTEGER: Final = re.compile(r"[+-]?\d{1,9}", re.ASCII)
_SHOWN_CHARACTERS: Final = 40


class TraceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One request to come; `slo_scale` None means the scale of the run.

    Admission may degrade it to `min_steps` denoise steps; None: as the run says.
    """

    arrival_s: float
    height: int
    width: int
    frames: int
    steps: int
    model: ModelId | None = None
    tenant: str = "default"
    slo_scale: float | None = None
    priority: int = 0
    min_steps: int | None = None


class TraceExtent(msgspec.Struct, frozen=True):
    """How many requests a trace holds, when the last one arrives, and which models they name."""

    requests: int
    last_arrival_s: float
    models: frozenset[ModelId | None]


def read_trace(path: Path) -> Iterator[TraceRow]:
    """Yield the requests of a CSV file in the order of their arrival.

    Raises:
        TraceError: names file, line, field and what was expected.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _rows(path, file)
    except OSError as error:
        raise TraceError(f"Cannot read the trace {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise TraceError(f"{path} is not UTF-8 text (byte {error.start}).") from error


def measure(rows: Iterable[TraceRow]) -> TraceExtent:
    """Go through a trace once, and so find every mistake in it before anything runs."""
    requests, last_s, models = 0, 0.0, set()
    for row in rows:
        requests, last_s = requests + 1, row.arrival_s
        models.add(row.model)
    return TraceExtent(requests, last_s, frozenset(models))


def mix_of(rows: Iterable[TraceRow]) -> Demand:
    """Return how often each size is asked for, with its mean steps; only ratios mean something.

    This is foresight. It is for baselines that a person would cut for the traffic that is known.
    """
    counts, steps = Counter[tuple[ModelId, Shape]](), Counter[tuple[ModelId, Shape]]()
    for row in rows:
        if row.model is not None:
            key = row.model, Shape(row.width, row.height, row.frames)
            counts[key] += 1
            steps[key] += row.steps
    classes = (ClassDemand(*key, round(steps[key] / n), n) for key, n in counts.items())
    return Demand(tuple(sorted(classes)), is_relative=True)


def _rows(path: Path, lines: Iterable[str]) -> Iterator[TraceRow]:
    reader = csv.reader(lines, strict=True)
    try:
        header = _header(path, next(reader, None))
        before_s, empty = 0.0, True
        for cells in reader:
            if cells:
                row = _Line(path, reader.line_num, header, cells).row()
                if row.arrival_s < before_s:
                    message = (
                        f"{path}, line {reader.line_num}, field arrival_s: {row.arrival_s:g} is "
                        f"before the line above ({before_s:g}); sort the file by arrival_s."
                    )
                    raise TraceError(message)
                before_s, empty = row.arrival_s, False
                yield row
    except csv.Error as error:
        raise TraceError(f"{path}, line {reader.line_num}: not CSV: {error}.") from error
    if empty:
        raise TraceError(f"{path} holds no request, only a header.")


def _header(path: Path, cells: list[str] | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in cells or ())
    missing = [name for name in REQUIRED if name not in names]
    unknown = [name for name in names if name not in REQUIRED + OPTIONAL]
    if missing:
        wrong = f"the column {missing[0]} is missing"
    elif unknown:
        wrong = f"nobody knows the column {_shown(unknown[0])}"
    elif len(set(names)) < len(names):
        wrong = "a column is there twice"
    else:
        return names
    expected = f"{','.join(REQUIRED)} and, if wanted, {','.join(OPTIONAL)}"
    raise TraceError(f"{path}, line 1: {wrong}; expected {expected}.")


class _Line:
    """One line of a trace, able to say where it is wrong."""

    def __init__(self, path: Path, number: int, header: tuple[str, ...], cells: list[str]) -> None:
        self._where = f"{path}, line {number}"
        if len(cells) != len(header):
            message = f"{self._where}: {len(cells)} fields, expected {len(header)}"
            raise TraceError(f"{message} ({','.join(header)}).")
        stripped = (cell.strip() for cell in cells)
        self._cells: Mapping[str, str] = dict(zip(header, stripped, strict=True))

    def row(self) -> TraceRow:
        return TraceRow(
            arrival_s=self._arrival_s("arrival_s"),
            height=self._positive("height"),
            width=self._positive("width"),
            frames=self._positive("frames"),
            steps=self._positive("steps"),
            model=self._optional("model", self._model, None),
            tenant=self._optional("tenant", self._cells.__getitem__, "default"),
            slo_scale=self._optional("slo_scale", self._scale, None),
            priority=self._optional("priority", self._priority, 0),
            min_steps=self._optional("min_steps", self._min_steps, None),
        )

    def _optional(self, field: str, read: Callable[[str], T], default: T) -> T:
        if not self._cells.get(field):
            return default
        return read(field)

    def _model(self, field: str) -> ModelId:
        return ModelId(self._cells[field])

    def _arrival_s(self, field: str) -> float:
        value = self._number(field)
        if value is None or value < 0:
            self._refuse(field, "seconds since the start, a number of at least 0")
        return value

    def _scale(self, field: str) -> float:
        value = self._number(field)
        if value is None or value <= 0:
            self._refuse(field, "a number above 0, or nothing")
        return value

    def _positive(self, field: str) -> int:
        value = self._integer(field)
        if value is None or value < 1:
            self._refuse(field, "a whole number from 1 to 999999999")
        return value

    def _min_steps(self, field: str) -> int:
        value = self._integer(field)
        if value is None or not 1 <= value <= self._positive("steps"):
            self._refuse(field, "a whole number from 1 to the line's steps, or nothing")
        return value

    def _priority(self, field: str) -> int:
        value = self._integer(field)
        if value is None:
            self._refuse(field, "a whole number, or nothing")
        return value

    def _number(self, field: str) -> float | None:
        cell = self._cells[field]
        value = float(cell) if _NUMBER.fullmatch(cell) else math.nan
        return value if math.isfinite(value) else None

    def _integer(self, field: str) -> int | None:
        cell = self._cells[field]
        return int(cell) if _INTEGER.fullmatch(cell) else None

    def _refuse(self, field: str, expected: str) -> NoReturn:
        cell = self._cells[field]
        message = f"{self._where}, field {field}: {_shown(cell)}, expected {expected}."
        raise TraceError(message)


def _shown(text: str) -> str:
    short = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
    return repr(short)
