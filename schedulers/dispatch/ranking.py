"""Who comes first: every waiting task in the order in which a decision looks at it.

Elders (the starvation bound), then what can still be on time by deadline, then what cannot by
arrival; higher priority first inside each, and tenants that are ahead of their share a little later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.types import StageKind, StageTask
from schedulers.dispatch.elders import elders
from schedulers.dispatch.prospects import Prospect
from schedulers.dispatch.round import Round

SPARE_LATE = 8  # late requests looked at beyond the number of idle devices

Urgency = tuple[int, float, float, int, int]


class Ranking:
    """The order of one decision.

    Args:
        delays_s: how much later each tenant's requests stand, see `fairness`.
    """

    def __init__(self, decision: Round, delays_s: Mapping[str, float]) -> None:
        """Rank by the decision's knobs."""
        self._decision, self._knobs, self._delays_s = decision, decision.knobs, delays_s

    def ordered(self, tasks: Sequence[StageTask]) -> list[StageTask]:
        """Return encodes or decodes, most urgent first."""

        def key(task: StageTask) -> tuple[bool, Urgency]:
            late = self._knobs.background and self._is_late(task)
            return (late, self._urgency(task, late=late))

        return sorted(tasks, key=key)

    def _is_late(self, task: StageTask) -> bool:
        left_s = self._decision.decode_s(task)
        if task.stage.kind is StageKind.ENCODE:
            left_s += task.request.steps * self._decision.curve_of(task).fastest_s
        return self._decision.now_s + left_s > task.request.deadline_s

    def _urgency(self, task: StageTask, *, late: bool) -> Urgency:
        request = task.request
        by_arrival = late or not self._knobs.deadline_order
        first_s = request.arrival_s if by_arrival else request.deadline_s
        first_s += self._delays_s[request.tenant]
        return (-request.priority, first_s, request.arrival_s, task.sequence, task.image_index)

    def prospects(self, tasks: Sequence[StageTask]) -> list[Prospect]:
        """Return what waits to begin or to diffuse, most urgent first.

        Late ones are refused if the knobs say so; else as many of them are looked at as could
        start, since they take what is left in order of arrival. The rest is held.
        """
        timely: list[tuple[Urgency, StageTask]] = []
        late: list[tuple[Urgency, StageTask]] = []
        for task in tasks:
            is_late = self._knobs.background and self._decision.is_late(task)
            (late if is_late else timely).append((self._urgency(task, late=is_late), task))
        timely.sort(key=_by_urgency)
        late.sort(key=_by_urgency)
        if self._knobs.refuse:
            self._refuse(late)
            late = []
        oldest = elders(self._decision, [task for _urgency, task in late])
        rest = [task for _urgency, task in late if task.id not in oldest]
        most = len(self._decision.board.idle) + SPARE_LATE
        for task in rest[most:]:
            self._decision.hold(task, "late already: older ones wait before it")
        for _urgency, task in timely[self._knobs.considered :]:
            self._decision.hold(task, "waits: more urgent ones fill this decision")
        first = [self._decision.prospect(task, late=True) for task in oldest.values()]
        for prospect in first:
            prospect.is_elder = True
        return [
            *first,
            *(
                self._decision.prospect(task, late=False)
                for _urgency, task in timely[: self._knobs.considered]
            ),
            *(self._decision.prospect(task, late=True) for task in rest[:most]),
        ]

    def _refuse(self, late: Sequence[tuple[Urgency, StageTask]]) -> None:
        for _urgency, task in late:
            soonest_s = self._decision.now_s + self._decision.outlook(task).best_s
            missed_s = soonest_s - task.request.deadline_s
            self._decision.refuse(
                task,
                f"Request {task.request.id} cannot be on time any more: at the fastest it would "
                f"end {missed_s:.1f} s after its deadline. Try again later or ask for less.",
            )


def _by_urgency(ranked: tuple[Urgency, StageTask]) -> Urgency:
    return ranked[0]
