"""Workloads: seeded streams of requests for each of the four pipelines.

`hetu` is like the traces that the paper's authors published. All others are OURS: the paper's
mixes and rates are not public (docs/simulator.md has every formula). A rate is set by an offered
load: GPU-seconds asked for per second, each request at its cheapest feasible degree, as a share
of the GPUs. What a request costs is passed in; this module knows no profile and no policy.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Final

import msgspec

from schedulers.errors import TraceError
from schedulers.sim.arrivals import Arrivals, by_day, clumped, evenly, in_bursts, poisson
from schedulers.sim.mixes import Size
from schedulers.sim.phases import (
    DRAFTS,
    DYNAMIC,
    Phase,
    Setting,
    Spell,
    as_published,
    at_load,
    bursty,
    five_phases,
    hand_over,
    mean_cost,
    mostly_large,
    mostly_small,
    popular,
    row,
    uniform,
)
from schedulers.sim.traces import TraceRow

DURATION_S: Final = 1800.0
_DECK: Final = 2700  # requests over which `hetu` is exactly balanced: one published trace


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe: which phases, and how requests are spaced inside a phase."""

    name: str
    about: str
    phases: Callable[[Setting, int], tuple[Phase, ...]]
    arrivals: Arrivals
    duration_s: float = DURATION_S
    balanced: bool = False
    three: bool = False

    def steps(self, setting: Setting) -> int:
        """Return the usual denoise steps of a request."""
        own = setting.mix.three_steps if self.three else setting.mix.steps
        return setting.steps or own

    def rate_rps(self, setting: Setting) -> float:
        """Return the mean rate over the whole duration."""
        phases = self.phases(setting, self.steps(setting))
        return setting.rate_scale * sum(phase.share * phase.rate_rps for phase in phases)

    def offered_load(self, setting: Setting) -> float:
        """Return the mean offered load: 1 is all that the GPUs could do at best."""
        steps = self.steps(setting)
        asked = sum(
            phase.share * phase.rate_rps * mean_cost(setting, phase)
            for phase in self.phases(setting, steps)
        )
        return setting.rate_scale * asked / setting.gpus

    def rows(self, setting: Setting) -> Iterator[TraceRow]:
        """Yield the requests in order of arrival; the same for the same setting."""
        rng = random.Random(f"{self.name}/{setting.model}/{setting.seed}")  # noqa: S311 - replays
        duration_s, begin_s = setting.duration_s or self.duration_s, 0.0
        for phase in self.phases(setting, self.steps(setting)):
            length_s = phase.share * duration_s
            sizes = _deck(rng, phase) if self.balanced else _draws(rng, phase)
            for offset_s in self.arrivals(rng, phase.rate_rps * setting.rate_scale, length_s):
                yield row(next(sizes), setting.model, phase.steps, begin_s + offset_s)
            begin_s += length_s


def workload(name: str) -> Workload:
    """Return a workload by its name.

    Raises:
        TraceError: there is none of this name.
    """
    if name not in WORKLOADS:
        raise TraceError(f"No workload is named {name!r}; there are {', '.join(WORKLOADS)}.")
    return WORKLOADS[name]


def _deck(rng: random.Random, phase: Phase) -> Iterator[Size]:
    """Yield every size equally often, shuffled in decks of one published trace."""
    count = len(phase.sizes)
    while True:
        deck = [phase.sizes[i % count] for i in range(_DECK)]
        rng.shuffle(deck)
        yield from deck


def _draws(rng: random.Random, phase: Phase) -> Iterator[Size]:
    cumulative = list(accumulate(phase.weights))
    while True:
        yield rng.choices(phase.sizes, cum_weights=cumulative)[0]


WORKLOADS: Final[Mapping[str, Workload]] = {
    recipe.name: recipe
    for recipe in (
        Workload(
            name="hetu",
            about="like the published traces: evenly spaced, sizes exactly balanced and shuffled",
            phases=as_published,
            arrivals=evenly,
            balanced=True,
        ),
        Workload(
            name="poisson",
            about="the rate and sizes of hetu with exponential gaps and independent sizes",
            phases=as_published,
            arrivals=poisson,
        ),
        Workload(
            name="bursts",
            about="uniform sizes, load .70 (images) or .79 (video), in calm and bursting stretches",
            phases=bursty,
            arrivals=in_bursts,
        ),
        Workload(
            name="diurnal",
            about="uniform sizes, mean load .60, the rate follows a day of 30 minutes",
            phases=at_load(Spell(1.0, 0.60, uniform)),
            arrivals=by_day,
        ),
        Workload(
            name="light",
            about="mostly small sizes, Poisson, load .80",
            phases=at_load(Spell(1.0, 0.80, mostly_small)),
            arrivals=poisson,
        ),
        Workload(
            name="medium",
            about="uniform sizes, Poisson, load .80",
            phases=at_load(Spell(1.0, 0.80, uniform)),
            arrivals=poisson,
        ),
        Workload(
            name="heavy",
            about="mostly large sizes, Poisson, load .80",
            phases=at_load(Spell(1.0, 0.80, mostly_large)),
            arrivals=poisson,
        ),
        Workload(
            name="dynamic",
            about="six equal phases that change mix and load (.60 to .90), Poisson",
            phases=at_load(*DYNAMIC),
            arrivals=poisson,
        ),
        Workload(
            name="drafts",
            about="finals of 3 x the steps, then drafts of a third, then finals; Poisson, load .80",
            phases=at_load(*DRAFTS),
            arrivals=poisson,
            duration_s=2700.0,
        ),
        Workload(
            name="handover",
            about="several models, busy and quiet by turns in three phases, Poisson, load .70",
            phases=hand_over,
            arrivals=poisson,
            duration_s=2700.0,
        ),
        Workload(
            name="proprietary",
            about="clumped arrivals, small sizes popular and large ones rare, load .70",
            phases=at_load(Spell(1.0, 0.70, popular)),
            arrivals=clumped,
        ),
        Workload(
            name="five-phase",
            about="one hour of short, middle and long requests in five phases, Poisson",
            phases=five_phases,
            arrivals=poisson,
            duration_s=3600.0,
            three=True,
        ),
    )
}
