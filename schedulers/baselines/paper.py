"""TridentServe as published (arXiv 2510.02838): rounds, an integer program, teams derived from it.

Every half second the program (`program`) decides which requests run now, on which primary type and
at which degree; the team is taken on the node with the most idle devices and is the request's until
its diffuse ends. Encode runs on that team if its devices hold the encoder, else on an auxiliary;
decode on one device of the team if they hold the decoder, else on an auxiliary. Auxiliaries serve in
order of arrival. Nothing that runs is ever changed; no request is held a place.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.types import DeviceId, RequestId, StageKind, StageTask
from schedulers.baselines.allotment import Team
from schedulers.baselines.auxiliaries import place_decodes, place_encodes
from schedulers.baselines.orders import first_come
from schedulers.baselines.primaries import primaries
from schedulers.baselines.program import choose
from schedulers.baselines.ticks import Ticks
from schedulers.dispatch.prospects import sibling
from schedulers.dispatch.round import Round

ROUND_S = 0.5
_BEFORE_DECODE = (StageKind.ENCODE, StageKind.DIFFUSE)


class PaperRule:
    """The published dispatcher; its memory is the team of every request that was dispatched."""

    def __init__(self) -> None:
        """Begin without requests."""
        self._teams: dict[RequestId, Team] = {}
        self._ticks = Ticks(ROUND_S)

    def refusal(self, decision: Round, task: StageTask) -> str | None:
        """Refuse nothing that the cluster could run."""
        del decision, task
        return None

    def decide(self, decision: Round, tasks: Sequence[StageTask]) -> float | None:
        """Go on with what was dispatched; in a round, dispatch what waits."""
        ordered = sorted(tasks, key=lambda task: first_come(decision, task))
        self._forget(decision, ordered)
        self._decode(decision, [t for t in ordered if t.stage.kind is StageKind.DECODE])
        waiting = [task for task in ordered if task.stage.kind in _BEFORE_DECODE]
        pending = [task for task in waiting if task.request.id not in self._teams]
        if not pending:
            self._ticks.rest()
        elif self._ticks.strike(decision.now_s):
            self._dispatch(decision, pending)
        self._go_on(decision, waiting)
        return self._ticks.next_s

    def _forget(self, decision: Round, tasks: Sequence[StageTask]) -> None:
        """Free the teams of requests that have diffused, or that lost a device."""
        here = [t for view in decision.board.view.running for t in view.assignment.tasks]
        needed = {t.request.id for t in (*tasks, *here) if t.stage.kind in _BEFORE_DECODE}
        devices = decision.board.devices
        self._teams = {
            request: team
            for request, team in self._teams.items()
            if request in needed and all(device in devices for device in team)
        }

    def _dispatch(self, decision: Round, pending: Sequence[StageTask]) -> None:
        """Solve the program, and give its choices their teams.

        Several outputs of one request are one choice: they take turns on its team.
        """
        reserved = {device for team in self._teams.values() for device in team}
        firsts = {task.request.id: task for task in reversed(pending)}
        for choice in choose(decision, list(firsts.values()), primaries(decision, reserved)):
            team = choice.primary.take(choice.degree)
            if team is not None:
                self._teams[choice.task.request.id] = tuple(sorted(team))

    def _go_on(self, decision: Round, tasks: Sequence[StageTask]) -> None:
        """Encode and diffuse what has a team."""
        apart: list[StageTask] = []
        for task in tasks:
            team = self._teams.get(task.request.id)
            if team is None:
                decision.hold(task, "waits for a round that chooses it")
            elif task.stage.kind is StageKind.ENCODE and not self._holds(decision, task, team):
                apart.append(task)
            else:
                launched = team if task.stage.kind is StageKind.DIFFUSE else team[:1]
                if all(device in decision.board.idle for device in team):
                    decision.launch(task, launched, f"chosen at degree {len(team)}")
                else:
                    decision.hold(task, "waits for its team")
        place_encodes(decision, apart)

    def _holds(self, decision: Round, task: StageTask, team: Team) -> bool:
        devices = decision.board.devices
        return all(task.stage in devices[device].desired for device in team)

    def _decode(self, decision: Round, tasks: Sequence[StageTask]) -> None:
        """Decode on the first device of the team if it may, else on an auxiliary."""
        apart: list[StageTask] = []
        for task in tasks:
            own = [device for device in task.came_from if self._may(decision, device, task)]
            if not own:
                apart.append(task)
            elif own[0] in decision.board.idle:
                decision.launch(task, (own[0],), "decodes on a device of its team")
            else:
                decision.hold(task, "waits for a device of its team")
        place_decodes(decision, apart)

    def _may(self, decision: Round, device: DeviceId, task: StageTask) -> bool:
        seen = decision.board.devices.get(device)
        if seen is None:
            return False
        diffuses = sibling(task.stage, StageKind.DIFFUSE) in seen.desired
        return diffuses and task.stage in seen.desired
