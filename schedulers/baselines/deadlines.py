"""EDF best fit, the policy of GF-DiT (arXiv 2606.13501).

Diffuses in order of their deadlines; each gets the smallest degree at which it is expected to be on
time, or, if none is left that is, the one at which it ends soonest. What is left over goes to the
most urgent of those that were just placed. Encode and decode run on one device.

GF-DiT places each chunk of denoise steps anew; here a placed diffuse runs to its end.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.types import StageTask
from schedulers.baselines.auxiliaries import place_auxiliaries
from schedulers.baselines.bestfit import fullest
from schedulers.baselines.orders import earliest_deadline
from schedulers.baselines.widening import widen_fresh
from schedulers.dispatch.prospects import Prospect
from schedulers.dispatch.round import Round


class EdfBestFit:
    """Earliest deadline first, smallest sufficient degree."""

    def refusal(self, decision: Round, task: StageTask) -> str | None:
        """Refuse nothing that the cluster could run."""
        del decision, task
        return None

    def decide(self, decision: Round, tasks: Sequence[StageTask]) -> None:
        """Place auxiliaries, then diffuses, then what is left over."""
        for task in place_auxiliaries(decision, tasks, earliest_deadline):
            if not start(decision, decision.prospect(task, late=False)):
                decision.hold(task, "waits for a team of any degree that memory allows")
        widen_fresh(decision)


def start(decision: Round, prospect: Prospect) -> bool:
    """Launch a diffuse at the degree that fits it best of those that some node has room for."""
    rooms = decision.board.rooms(prospect.stage)
    widest = max((len(room) for room in rooms.values()), default=0)
    degrees = [k for k in prospect.curve.degrees if k <= widest]
    if not degrees:
        return False
    on_time = [k for k in degrees if prospect.on_time(k, decision.now_s)]
    degree = on_time[0] if on_time else min(degrees, key=lambda k: (prospect.run_s(k), k))
    why = "smallest degree that is on time" if on_time else "late: degree that ends soonest"
    launch(decision, prospect, degree, why)
    return True


def launch(decision: Round, prospect: Prospect, degree: int, why: str) -> bool:
    """Launch a diffuse at a degree on the fullest node that has room; False if none has."""
    node = fullest(decision, prospect.task, degree)
    if node is None:
        return False
    team = decision.board.choose(prospect.stage, node, degree, prospect.task.came_from)
    decision.launch(prospect.task, team, f"{why}: {degree}")
    return True
