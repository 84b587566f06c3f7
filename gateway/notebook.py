"""The figures of a measurement, kept in a file beside the profile as soon as they are known."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine.types import Shape, StageKind
from schedulers.profiles.measured import Figure, LoadFigure, Measured, NodeFigure

if TYPE_CHECKING:
    from engine import PipelineSpec


class Notebook:
    """Figures by what they are of, kept in a file as soon as they are known.

    A file of other circumstances (machine, versions, models) is begun anew.
    """

    def __init__(self, path: Path, circumstances: Mapping[str, object]) -> None:
        """Read what an interrupted run has left."""
        self._path, self.figures = path, list[Measured]()
        head = msgspec.json.encode(circumstances)
        with suppress(OSError, msgspec.MsgspecError):
            first, *lines = path.read_bytes().splitlines() or [b""]
            if first == head:
                self.figures = [msgspec.json.decode(line, type=Measured) for line in lines]
        if not self.figures:
            path.write_bytes(head + b"\n")

    def add(self, figure: Measured) -> None:
        """Keep a figure."""
        self.figures.append(figure)
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(figure) + b"\n")

    def has(self, spec: PipelineSpec, shape: Shape, degree: int, batch: int = 1) -> bool:
        """Return whether a model was measured at a size, degree and batch."""
        return any(
            (f.shape, f.degree, f.batch) == (shape, degree, batch)
            for f in self.of(spec, StageKind.DIFFUSE)
        )

    def of(self, spec: PipelineSpec, kind: StageKind) -> list[Figure]:
        """Return the figures of one stage of a model, in the order in which they were measured."""
        return [
            figure
            for figure in self.figures
            if isinstance(figure, Figure) and (figure.model, figure.stage) == (spec.id, kind)
        ]

    def has_loads(self, spec: PipelineSpec) -> bool:
        """Return whether the loads of all stages of a model were measured."""
        found = {f.stage for f in self.figures if isinstance(f, LoadFigure) and f.model == spec.id}
        return found == set(StageKind)

    @property
    def has_node(self) -> bool:
        """Return whether the node was measured."""
        return any(isinstance(figure, NodeFigure) for figure in self.figures)

    def forget(self) -> None:
        """Delete the file: the profile is written."""
        self._path.unlink(missing_ok=True)
