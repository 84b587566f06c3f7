"""Fixed teams: every node is cut into teams once, each for requests of one degree (B1, B2, B5).

With one bucket this is the usual static deployment. With several, each gets a share of the devices
by its share of the device-seconds under the mix that is expected. When devices are lost or come
back the cut is made anew, as if the deployment were restarted at no cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from engine.types import (
    DeviceId,
    GenerationRequest,
    ModelId,
    RequestId,
    Shape,
    StageKey,
    StageKind,
    StageTask,
)
from schedulers.baselines.allotment import Team, fitting_degrees, width
from schedulers.dispatch.board import Layout, Node
from schedulers.dispatch.prospects import sibling
from schedulers.dispatch.round import Round

if TYPE_CHECKING:
    from schedulers.cost import CostModel
    from schedulers.planner.demand import ClassDemand, Demand

Shares = Mapping[int, float]  # device-seconds by degree, in any unit
Cut = dict[int, list[Team]]  # teams by degree, in order of node and device


class Buckets:
    """Gives each request a team of the bucket that its size belongs to.

    Args:
        shares: how much work each degree has; a single one makes all teams alike.
        natural: the degree that a request's size asks for.
    """

    def __init__(self, shares: Shares, natural: Callable[[StageTask], int]) -> None:
        """Keep the shares; teams are cut when the layout is known."""
        self._shares, self._natural = dict(shares), natural
        self._layout: Layout | None = None
        self._cut: Cut = {}
        self._degrees: dict[tuple[ModelId, Shape], int | None] = {}

    def teams(self, layout: Layout) -> Cut:
        """Return the teams of every bucket."""
        if layout is not self._layout:
            self._layout, self._cut = layout, cut(layout, self._shares)
            self._degrees.clear()
        return self._cut

    def degree(self, decision: Round, task: StageTask) -> int | None:
        """Return the bucket of a request: its own degree, else the next wider, else a narrower."""
        there = self.teams(decision.board.layout)
        key = (task.request.model, task.request.shape)
        if key not in self._degrees:
            fitting = [k for k in sorted(there) if k in fitting_degrees(decision, task)]
            wide = [k for k in fitting if k >= self._natural(task)]
            self._degrees[key] = wide[0] if wide else max(fitting, default=None)
        return self._degrees[key]

    def refusal(self, decision: Round, task: StageTask) -> str | None:
        """Refuse a size that no bucket is wide enough for, unless devices are missing."""
        if decision.board.view.lacks_devices or self.degree(decision, task) is not None:
            return None
        degrees = decision.curve_of(task).degrees
        least = next((k for k in degrees if width(decision, task, k) >= k), degrees[0])
        have = ", ".join(str(k) for k in sorted(self.teams(decision.board.layout))) or "none"
        return (
            f"{task.request.model} at {task.request.shape} needs a team of at least {least} "
            f"devices, but the teams of this static deployment have {have}."
        )

    def offer(self, decision: Round) -> BucketOffer:
        """Offer the teams whose devices are all idle."""
        idle = decision.board.idle
        free = {
            degree: [team for team in teams if all(device in idle for device in team)]
            for degree, teams in self.teams(decision.board.layout).items()
        }
        return BucketOffer(self, decision, free)


class BucketOffer:
    """The free teams of one decision."""

    def __init__(self, buckets: Buckets, decision: Round, free: Cut) -> None:
        """Offer `free`."""
        self._buckets, self._decision, self._free = buckets, decision, free

    def take(self, task: StageTask) -> Team | None:
        """Return the first free team of a request's bucket that may run its model."""
        if not any(self._free.values()):
            return None
        degree = self._buckets.degree(self._decision, task)
        stage = sibling(task.stage, StageKind.DIFFUSE)
        homes = self._decision.board.layout.homes.get(stage, frozenset())
        free = self._free[degree] if degree is not None else []
        for team in free:
            if homes.issuperset(team):
                free.remove(team)
                return team
        return None


def shares_of(mix: Demand, cost: CostModel, *, whole_pipeline: bool) -> dict[int, float]:
    """Return the device-seconds that a mix of requests asks for, by their best degrees.

    With `whole_pipeline` a team is also busy while its request is encoded and decoded.
    """
    shares: dict[int, float] = {}
    for entry in mix.classes:
        best = cost.best_degree(entry.model, entry.shape)
        request = _specimen(entry)
        busy_s = sum(
            cost.estimate(StageKey(entry.model, kind), request, degree=best).duration_s
            for kind in StageKind
            if whole_pipeline or kind is StageKind.DIFFUSE
        )
        shares[best] = shares.get(best, 0.0) + entry.rate_per_s * best * busy_s
    return shares


def _specimen(entry: ClassDemand) -> GenerationRequest:
    return GenerationRequest(
        id=RequestId("specimen"),
        model=entry.model,
        prompt="",
        shape=entry.shape,
        steps=entry.steps,
        guidance_scale=1.0,
        seed=0,
        arrival_s=0.0,
        deadline_s=0.0,
    )


def cut(layout: Layout, shares: Shares) -> Cut:
    """Cut every node's diffusing devices into teams, widest first, none across nodes."""
    room = _diffusing(layout)
    counts = _counts({k: s for k, s in shares.items() if s > 0}, [len(d) for d in room.values()])
    teams: Cut = {degree: [] for degree in counts}
    for degree in sorted(counts, reverse=True):
        for _team in range(counts[degree]):
            fitting = [
                (len(devices), node) for node, devices in room.items() if len(devices) >= degree
            ]
            if fitting:
                node = min(fitting)[1]
                teams[degree].append(tuple(room[node][:degree]))
                room[node] = room[node][degree:]
    _use_up(teams, room)
    return {degree: sorted(found) for degree, found in teams.items() if found}


def _diffusing(layout: Layout) -> dict[Node, list[DeviceId]]:
    """Return the devices that may diffuse some model, by node."""
    found: set[DeviceId] = set()
    for stage, homes in layout.homes.items():
        if _diffuses(stage):
            found |= homes
    room: dict[Node, list[DeviceId]] = {}
    for device in sorted(found):
        room.setdefault(layout.node_of[device], []).append(device)
    return room


def _diffuses(stage: StageKey) -> bool:
    return stage.kind is StageKind.DIFFUSE


def _counts(shares: Shares, rooms: Sequence[int]) -> dict[int, int]:
    """Return how many teams each bucket has: at least one, then always to the most lacking.

    A bucket wider than any node, or for which nothing is left, does not exist; the narrowest goes
    first, since wider teams can serve its requests.
    """
    widest, total = max(rooms, default=0), sum(rooms)
    degrees = sorted(k for k in shares if k <= widest)
    while sum(degrees) > total:
        degrees = degrees[1:]
    counts = dict.fromkeys(degrees, 1)
    left = total - sum(degrees)
    while fitting := [k for k in degrees if k <= left]:
        lacking = min(fitting, key=lambda k: (counts[k] * k / shares[k], -k))
        counts[lacking] += 1
        left -= lacking
    return counts


def _use_up(teams: Cut, room: dict[Node, list[DeviceId]]) -> None:
    """Give devices that are left to the widest bucket that they suffice for."""
    for devices in room.values():
        for degree in sorted(teams, reverse=True):
            while len(devices) >= degree:
                teams[degree].append(tuple(devices[:degree]))
                del devices[:degree]
