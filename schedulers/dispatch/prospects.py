"""What lies ahead of a request: how long at which degree, until when, and whether that is hopeless.

A `Curve` is a class of requests (model and shape) as the cost model knows it; a `Prospect` is one
diffuse task of it at the moment of a decision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.types import ModelId, RunningView, Shape, StageKey, StageKind, StageTask
from schedulers.cost import keep

if TYPE_CHECKING:
    from schedulers.cost import CostModel


class Curve:
    """Seconds per denoise step by degree, and the degrees worth considering.

    Attributes:
        degrees: from the least that memory allows, each with a step that takes less than
            `least_gain` of the one before; ascending.
        step_s: seconds per step for each of them.
        cheapest: the degree with the fewest device-seconds per step.
        fastest_s: the least seconds per step.
    """

    __slots__ = ("cheapest", "degrees", "fastest_s", "step_s")

    def __init__(
        self,
        cost: CostModel,
        model: ModelId,
        shape: Shape,
        least_gain: float,
        most_waste: float = float("inf"),
    ) -> None:
        """Ask the cost model; degrees that waste more than `most_waste` are left out."""
        least = cost.min_degree(model, shape)
        allowed = [k for k in cost.degrees(model) if k >= least]
        times = {k: cost.step_s(model, shape, k) for k in allowed}
        kept = allowed[:1]
        for degree in allowed[1:]:
            if times[degree] < least_gain * times[kept[-1]]:
                kept.append(degree)
        cheapest_s = min(k * times[k] for k in kept)
        kept = [k for k in kept if k * times[k] <= most_waste * cheapest_s]
        self.degrees = tuple(kept)
        self.step_s = {k: times[k] for k in kept}
        self.cheapest = min(kept, key=lambda k: (k * times[k], k))
        self.fastest_s = min(self.step_s.values())


class Outlook:
    """What lies ahead of every waiting request of a class, at the moment of a decision.

    Attributes:
        steps: denoise steps that are left.
        lead_s: seconds before the first of them: the encode if that is still to do, and hand-offs.
        tail_s: seconds from the end of the last to the artifact, decode pool's wait included.
        best_s: least seconds from now to the artifact on idle devices.
    """

    __slots__ = ("best_s", "curve", "lead_s", "steps", "tail_s")

    def __init__(self, curve: Curve, steps: int, *, lead_s: float, tail_s: float) -> None:
        """Add it up."""
        self.curve, self.steps, self.lead_s, self.tail_s = curve, steps, lead_s, tail_s
        self.best_s = lead_s + steps * curve.fastest_s + tail_s


class Prospect:
    """A request that waits to begin or to diffuse, at the moment of a decision.

    Attributes:
        stage: its diffuse stage.
        is_background: it cannot be on time any more, so it stands behind all that can.
        is_elder: it has waited so long that it goes first all the same.
    """

    __slots__ = (
        "curve", "deadline_s", "is_background", "is_elder", "lead_s", "stage", "steps", "tail_s",
        "task",
    )  # fmt: skip

    def __init__(self, task: StageTask, outlook: Outlook, *, late: bool) -> None:
        """Take over what its class has in common."""
        self.task, self.curve, self.steps = task, outlook.curve, outlook.steps
        self.lead_s, self.tail_s = outlook.lead_s, outlook.tail_s
        self.stage = sibling(task.stage, StageKind.DIFFUSE)
        self.deadline_s = task.request.deadline_s
        self.is_background, self.is_elder = late, False

    @property
    def best_s(self) -> float:
        """Least seconds from now to its artifact on idle devices."""
        return self.lead_s + self.steps * self.curve.fastest_s + self.tail_s

    @property
    def begins(self) -> bool:
        """Whether its encode is still to do."""
        return self.task.stage.kind is StageKind.ENCODE

    def run_s(self, degree: int) -> float:
        """Return the seconds that its team would be taken at a degree."""
        return self.lead_s + self.steps * self.curve.step_s[degree]

    def on_time(self, degree: int, start_s: float) -> bool:
        """Whether it would meet its deadline if it started then at a degree."""
        return start_s + self.run_s(degree) + self.tail_s <= self.deadline_s


class Underway:
    """One running diffuse at the moment of a decision.

    Attributes:
        boundary_s: when its running denoise step is expected to end.
        left: steps that remain after that boundary.
        ends_s: when it is expected to end as it runs.
    """

    __slots__ = ("boundary_s", "curve", "degree", "ends_s", "left", "view")

    def __init__(self, view: RunningView, curve: Curve, step_s: float, now_s: float) -> None:
        """Extrapolate from the last boundary."""
        steps = view.assignment.task.request.steps
        self.view, self.curve, self.degree = view, curve, view.assignment.degree
        begun = view.step > view.assignment.task.steps_done
        ends_s = view.step_at_s + (steps - view.step) * step_s if begun else view.ends_s
        self.left = max(0, steps - view.step - 1)
        self.boundary_s = max(now_s, ends_s - self.left * step_s)
        self.ends_s = max(ends_s, self.boundary_s)

    @property
    def task(self) -> StageTask:
        """What runs."""
        return self.view.assignment.task


class Curves:
    """The curves of all classes seen, renewed when the cost model has learnt."""

    def __init__(
        self, cost: CostModel, least_gain: float, most_waste: float = float("inf")
    ) -> None:
        """Know nothing yet."""
        self._cost, self._least_gain, self._most_waste = cost, least_gain, most_waste
        self._kept: dict[tuple[ModelId, Shape, bool], tuple[float, Curve]] = {}

    def of(self, model: ModelId, shape: Shape, *, lean: bool = False) -> Curve:
        """Return a class's curve as of now; a lean one has no wasteful degrees."""
        key = (model, shape, lean)
        first_s, curve = self._kept.get(key, (None, None))
        if curve is None or self._cost.step_s(model, shape, curve.degrees[0]) != first_s:
            most = self._most_waste if lean else float("inf")
            curve = Curve(self._cost, model, shape, self._least_gain, most)
            keep(self._kept, key, (curve.step_s[curve.degrees[0]], curve))
        return curve


def sibling(stage: StageKey, kind: StageKind) -> StageKey:
    """Return another stage of the same model."""
    return StageKey(stage.model, kind)
