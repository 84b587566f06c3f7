"""The baselines by name: B1 to B6 of TridentServe's evaluation (arXiv 2510.02838), and peers.

B1 is the usual static deployment (xDiT's way). B2 buckets requests by degree. B3 chooses the degree
per request and serves strictly in order of arrival; B4 is B3 with the shortest remaining time
first. B5 and B6 are B2 and B4 with stages disaggregated. `edf-best-fit` is GF-DiT's policy,
`deadline-rounds` TetriServe's. `trident-paper` is TridentServe without repairs or additions.

A builder takes the cost model and the mix of requests that is expected, by which buckets are sized.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from engine.types import StageTask
from schedulers.baselines.bestfit import BestFit
from schedulers.baselines.buckets import Buckets, shares_of
from schedulers.baselines.deadlines import EdfBestFit
from schedulers.baselines.dispatcher import BaselineDispatcher
from schedulers.baselines.orders import first_come, shortest_first
from schedulers.baselines.paper import PaperRule
from schedulers.baselines.pipeline import PipelineRule
from schedulers.baselines.rounds import DeadlineRounds
from schedulers.baselines.stagewise import StageRule

if TYPE_CHECKING:
    from engine.ports import Dispatcher
    from schedulers.cost import CostModel
    from schedulers.planner.demand import Demand

Builder = Callable[["CostModel", "Demand"], "Dispatcher"]
STATIC_DEGREES = (1, 2, 4, 8)
LONGEST_ROUND_S = 1.0


def _static(degree: int, cost: CostModel, _mix: Demand) -> Dispatcher:
    rule = PipelineRule(Buckets({degree: 1.0}, lambda _task: degree), first_come, overtakes=True)
    return BaselineDispatcher(cost, rule)


def _buckets(cost: CostModel, mix: Demand, *, whole_pipeline: bool) -> Buckets:
    def natural(task: StageTask) -> int:
        return cost.best_degree(task.request.model, task.request.shape)

    return Buckets(shares_of(mix, cost, whole_pipeline=whole_pipeline), natural)


def _b2(cost: CostModel, mix: Demand) -> Dispatcher:
    buckets = _buckets(cost, mix, whole_pipeline=True)
    return BaselineDispatcher(cost, PipelineRule(buckets, first_come, overtakes=True))


def _b3(cost: CostModel, _mix: Demand) -> Dispatcher:
    return BaselineDispatcher(cost, PipelineRule(BestFit(), first_come, overtakes=False))


def _b4(cost: CostModel, _mix: Demand) -> Dispatcher:
    return BaselineDispatcher(cost, PipelineRule(BestFit(), shortest_first, overtakes=True))


def _b5(cost: CostModel, mix: Demand) -> Dispatcher:
    buckets = _buckets(cost, mix, whole_pipeline=False)
    return BaselineDispatcher(cost, StageRule(buckets, first_come))


def _b6(cost: CostModel, _mix: Demand) -> Dispatcher:
    return BaselineDispatcher(cost, StageRule(BestFit(), shortest_first))


def _edf_best_fit(cost: CostModel, _mix: Demand) -> Dispatcher:
    return BaselineDispatcher(cost, EdfBestFit())


def _deadline_rounds(cost: CostModel, mix: Demand) -> Dispatcher:
    return BaselineDispatcher(cost, DeadlineRounds(round_s(mix, cost)))


def round_s(mix: Demand, cost: CostModel) -> float:
    """Return the mean denoise step of a mix at its best degrees, a second at most."""
    steps_s = (
        entry.rate_per_s
        * cost.step_s(entry.model, entry.shape, cost.best_degree(entry.model, entry.shape))
        for entry in mix.classes
    )
    return min(LONGEST_ROUND_S, sum(steps_s) / mix.rate_per_s)


def _paper(cost: CostModel, _mix: Demand) -> Dispatcher:
    return BaselineDispatcher(cost, PaperRule())


PIPELINE_LEVEL: dict[str, Builder] = {
    **{f"b1-sp{degree}": partial(_static, degree) for degree in STATIC_DEGREES},
    "b2": _b2,
    "b3": _b3,
    "b4": _b4,
}
STAGE_LEVEL: dict[str, Builder] = {
    "b5": _b5,
    "b6": _b6,
    "edf-best-fit": _edf_best_fit,
    "deadline-rounds": _deadline_rounds,
}
PAPER: Builder = _paper
