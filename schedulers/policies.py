"""Policies by name: which dispatcher and which planner, wired for one deployment.

The only place that knows all of them. The server and the simulator both build from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from engine.types import DeviceId
from schedulers.baselines.catalogue import PAPER, PIPELINE_LEVEL, STAGE_LEVEL, Builder
from schedulers.dispatch.assigned_starts import AssignedStarts
from schedulers.dispatch.knobs import Knobs
from schedulers.dispatch.starts import start_greedily
from schedulers.dispatch.trident import Starter, TridentDispatcher
from schedulers.errors import SchedulerError
from schedulers.planner.demand import Demand, uniform
from schedulers.planner.handsized import HandSized, HandSizes
from schedulers.planner.knobs import PlannerKnobs
from schedulers.planner.orchestrator import Orchestrator
from schedulers.static import EverywherePlanner

if TYPE_CHECKING:
    from engine.pipelines import PipelineSpec
    from engine.ports import Dispatcher, Planner
    from schedulers.cost import CostModel


SwitchValue = bool | int | float | Mapping[str, float]
"""What a switch may be set to; each knows its own kind."""


class Policy:
    """A dispatcher and a planner that belong together."""

    def __init__(
        self, dispatcher: Dispatcher, planner: Planner, *, needs_monitor: bool = False
    ) -> None:
        """Say whether the planner wants snapshots."""
        self.dispatcher, self.planner, self.needs_monitor = dispatcher, planner, needs_monitor


class Setup:
    """What a policy is built for.

    Attributes:
        nodes: the node of every configured device.
        solver: `greedy` or `ilp` for policies that have both; None means their default.
        switches: additions to turn on or off by name.
        sizes: a placement sized by hand, instead of the policy's planner.
        prior: the mix that is expected before anything was seen.
        mix: the mix that baselines are made for which never look at what comes; None means `prior`.
        base: the dispatcher's knobs before switches; what the executor cannot do is off there.
        planner: the planner's knobs.
    """

    def __init__(
        self,
        *,
        specs: Sequence[PipelineSpec],
        cost: CostModel,
        nodes: Mapping[DeviceId, str],
        solver: str | None = None,
        switches: Mapping[str, SwitchValue] | None = None,
        sizes: HandSizes | None = None,
        prior: Demand | None = None,
        mix: Demand | None = None,
        base: Knobs | None = None,
        planner: PlannerKnobs | None = None,
    ) -> None:
        """Keep it."""
        self.base, self.planner = base or Knobs(), planner or PlannerKnobs()
        self.sizes, self.prior, self.mix = sizes, prior, mix or prior
        self.specs, self.cost, self.nodes = tuple(specs), cost, dict(nodes)
        self.solver, self.switches = solver, dict(switches or {})

    def knobs(self, **changes: object) -> Knobs:
        """Return a policy's knobs with the switches applied.

        Raises:
            SchedulerError: there is no such switch, or its value is of the wrong kind.
        """
        wanted: dict[str, object] = {
            name.replace("-", "_"): value for name, value in self.switches.items()
        }
        unknown = [name for name in wanted if name not in Knobs.__struct_fields__]
        if unknown:
            known = ", ".join(Knobs.__struct_fields__)
            raise SchedulerError(f"There is no switch {unknown[0]!r}; known: {known}.")
        if self.solver is not None:
            wanted["solver"] = self.solver
        try:
            return msgspec.convert(
                {**msgspec.structs.asdict(self.base), **changes, **wanted}, Knobs
            )
        except msgspec.ValidationError as error:
            raise SchedulerError(f"A switch has a wrong value: {error}.") from error


def _trident(setup: Setup) -> Policy:
    knobs = setup.knobs()
    dispatcher = TridentDispatcher(setup.cost, knobs, start=_starter(knobs.solver))
    return Policy(dispatcher, _planner(setup), needs_monitor=setup.sizes is None)


def _starter(solver: str) -> Starter:
    starters: dict[str, Starter] = {"greedy": start_greedily, "ilp": AssignedStarts()}
    if solver not in starters:
        raise SchedulerError(f"There is no solver {solver!r}; known: {', '.join(starters)}.")
    return starters[solver]


def _planner(setup: Setup, *, faithful: bool = False) -> Planner:
    """Return the orchestrator (the paper's if `faithful`), or the placement that a person has sized."""
    if setup.sizes is not None:
        return HandSized(setup.specs, setup.sizes, nodes=setup.nodes)
    return Orchestrator(
        setup.specs,
        setup.cost,
        nodes=setup.nodes,
        prior=setup.prior,
        policy=setup.planner,
        faithful=faithful,
    )


def _pipeline_level(build: Builder, setup: Setup) -> Policy:
    """Return a baseline whose teams run all stages: every device wants them all."""
    return Policy(build(setup.cost, _mix(setup)), EverywherePlanner(setup.specs))


def _stage_level(build: Builder, setup: Setup) -> Policy:
    """Return a baseline on the placement that ours has."""
    dispatcher = build(setup.cost, _mix(setup))
    return Policy(dispatcher, _planner(setup), needs_monitor=setup.sizes is None)


def _paper(setup: Setup) -> Policy:
    """Return TridentServe as published: its dispatcher and its Algorithm 2."""
    planner = _planner(setup, faithful=True)
    return Policy(PAPER(setup.cost, _mix(setup)), planner, needs_monitor=setup.sizes is None)


def _mix(setup: Setup) -> Demand:
    """Return the mix that a baseline is made for, or every model's default size evenly."""
    if setup.mix is not None and setup.mix.classes:
        return setup.mix
    shapes = {spec.id: (spec.default_shape,) for spec in setup.specs}
    return uniform(shapes, {spec.id: spec.default_steps for spec in setup.specs})


# What the server offers; the others plan batches that it does not switch on, or teams by a table.
LIVE_POLICIES = ("trident", "b1-sp1", "b2", "b3", "b4")

POLICIES: dict[str, Callable[[Setup], Policy]] = {
    "trident": _trident,
    "trident-paper": _paper,
    **{name: partial(_pipeline_level, build) for name, build in PIPELINE_LEVEL.items()},
    **{name: partial(_stage_level, build) for name, build in STAGE_LEVEL.items()},
}


TUNABLE: Final = frozenset({"trident"})
"""Policies with switches and a choice of solvers; all others are what was published."""


def build_policy(name: str, setup: Setup) -> Policy:
    """Return a policy by its name.

    Raises:
        SchedulerError: there is none, or it has no switches and a solver or a switch is given.
    """
    builder = POLICIES.get(name)
    if builder is None:
        raise SchedulerError(f"There is no policy {name!r}; known: {', '.join(POLICIES)}.")
    if name not in TUNABLE and (setup.solver is not None or setup.switches):
        asked = next(iter(setup.switches), f"solver {setup.solver}")
        message = f"Policy {name} has no switches and one solver, so {asked!r} cannot be set"
        raise SchedulerError(f"{message}; {', '.join(sorted(TUNABLE))} has both.")
    return builder(setup)
