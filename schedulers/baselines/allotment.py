"""Which devices a request may have: what the baselines' allotments have in common.

An `Allotment` outlives decisions; an `Offer` is what it has to give away in one of them.
"""

from __future__ import annotations

from typing import Protocol

from engine.types import DeviceId, StageKind, StageTask
from schedulers.dispatch.prospects import sibling
from schedulers.dispatch.round import Round

Team = tuple[DeviceId, ...]


class Offer(Protocol):
    """The teams that are free in one decision."""

    def take(self, task: StageTask) -> Team | None:
        """Return a free team for a task and offer it no more, or None."""
        ...


class Allotment(Protocol):
    """A way to give teams to requests."""

    def refusal(self, decision: Round, task: StageTask) -> str | None:
        """Return why a request can never have a team, or None."""
        ...

    def offer(self, decision: Round) -> Offer:
        """Return what is free now."""
        ...


def width(decision: Round, task: StageTask, degree: int = 1) -> int:
    """Return the most devices of one node that have room for a request's diffuse at a degree."""
    stage = sibling(task.stage, StageKind.DIFFUSE)
    estimate = decision.cost.estimate(stage, task.request, degree=degree)
    view = decision.board.view
    needed_bytes = view.weight_bytes[stage] + estimate.activation_bytes
    return decision.board.layout.widest(stage, needed_bytes, view)


def fitting_degrees(decision: Round, task: StageTask) -> tuple[int, ...]:
    """Return the degrees at which memory and some node hold a request's diffuse, ascending."""
    degrees = decision.curve_of(task).degrees
    return tuple(k for k in degrees if width(decision, task, k) >= k)
