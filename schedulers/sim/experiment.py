"""One simulation from its configuration to its summary; the command line and benchmarks use it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

from schedulers.sim.config import RunFacts, SimConfig
from schedulers.sim.events import SimEvent
from schedulers.sim.summary import RunIdentity, Summary, SummaryBuilder

_PACKAGES = ("tridentserve", "highspy", "msgspec")


class Simulate(Protocol):
    """What runs the core loop in virtual time.

    `on_event` gets every event as it is over; `on_progress` the virtual seconds so far.
    """

    def __call__(
        self,
        config: SimConfig,
        *,
        on_event: Callable[[SimEvent], None],
        on_progress: Callable[[float], None],
    ) -> RunFacts:
        """Simulate to the end of the last request."""
        ...


def run_experiment(
    config: SimConfig,
    simulate: Simulate,
    *,
    workload: str,
    rate_scale: float = 1.0,
    observers: Sequence[Callable[[SimEvent], None]] = (),
    on_progress: Callable[[float], None] = lambda _: None,
) -> Summary:
    """Simulate and summarise; `workload` and `rate_scale` say where the rows come from."""
    builder = SummaryBuilder()

    def on_event(event: SimEvent) -> None:
        builder.add(event)
        for observe in observers:
            observe(event)

    facts = simulate(config, on_event=on_event, on_progress=on_progress)
    return builder.summary(_identity(config, workload, rate_scale), facts)


def _identity(config: SimConfig, workload: str, rate_scale: float) -> RunIdentity:
    return RunIdentity(
        policy=config.policy,
        profile=config.profile,
        models=config.models,
        workload=workload,
        gpus=config.gpus,
        seed=config.seed,
        slo_scale=config.slo_scale,
        rate_scale=rate_scale,
        noise=config.noise,
        stragglers=config.stragglers,
        failures=tuple(map(str, config.failures)),
        dispatcher=config.dispatcher,
        switches=config.switches,
        versions=versions(),
        degrade=config.degrade,
        min_steps_share=config.min_steps_share,
    )


def versions() -> dict[str, str]:
    """Return the versions that figures depend on; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
