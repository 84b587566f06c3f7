"""The Dynamic Orchestrator: which stages each device should hold, from demand and memory.

Public: `Orchestrator` and `HandSized` (planners), `Demand` and its makers, `PlannerKnobs`,
`Decision`, and the invariants in `check_integrity`.
"""

from schedulers.planner.decision import Decision, Trigger
from schedulers.planner.demand import ClassDemand, Demand, uniform
from schedulers.planner.handsized import HandSized, HandSizes
from schedulers.planner.integrity import PlacementError, check_integrity
from schedulers.planner.knobs import PlannerKnobs
from schedulers.planner.orchestrator import Orchestrator
from schedulers.planner.ports import StageCost

__all__ = [
    "ClassDemand",
    "Decision",
    "Demand",
    "HandSized",
    "HandSizes",
    "Orchestrator",
    "PlacementError",
    "PlannerKnobs",
    "StageCost",
    "Trigger",
    "check_integrity",
    "uniform",
]
