"""Workloads: seeded streams of requests for each of the four pipelines.

`hetu` is like the traces that the paper's authors published. All others are OURS: the paper's
mixes and rates are not public (docs/simulator.md has every formula). A rate is set by an offered
load: GPU-seconds asked for per second, each request at its cheapest feasible degree, as a share
of the GPUs. What a request costs is passed in; this module knows no profile and no policy.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Final

import msgspec

from engine.types import ModelId
from schedulers.errors import TraceError
from schedulers.sim.traces import TraceRow

GpuSeconds = Callable[[TraceRow], float]
Arrivals = Callable[[random.Random, float, float], Iterator[float]]
"""From a mean rate per second and a duration in seconds to times within that duration."""

SD3: Final = ModelId("sd3")
FLUX: Final = ModelId("flux1")
COG: Final = ModelId("cogvideox1.5-5b")
HUNYUAN: Final = ModelId("hunyuanvideo")

DURATION_S: Final = 1800.0
MIX_SPREAD: Final = 16.0  # how much likelier one end of the sizes is than the other (light, heavy)
POPULARITY_EXPONENT: Final = 1.2  # of `proprietary`: the i-th smallest size has weight i^-1.2
GAP_VARIATION: Final = 2.0  # of `proprietary`: standard deviation of a gap over its mean
DAY_S: Final = 1800.0  # of `diurnal`: a day, compressed
DAY_SWING: Final = 0.6  # of `diurnal`: how far the rate leaves its mean
CALM_S: Final = 90.0
BURST_S: Final = 30.0
CALM_LEVEL: Final = 0.6  # of the mean rate; 90 s at .6 and 30 s at 2.2 average to 1
BURST_LEVEL: Final = 2.2
IMAGE_FIVE_PHASE_RHO: Final = 0.75
_DECK: Final = 2700  # requests over which `hetu` is exactly balanced: one published trace


class Size(msgspec.Struct, frozen=True):
    """What is asked for, in pixels and frames."""

    height: int
    width: int
    frames: int = 1


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """What one pipeline is asked for: its usual steps and sizes, the smallest first.

    `rate_per_gpu` is the rate of the published trace per GPU; None where none is known.
    `three` and `three_steps` are the short, middle and long class of `five-phase`.
    """

    steps: int
    sizes: tuple[Size, ...]
    rate_per_gpu: float | None
    three: tuple[Size, Size, Size]
    three_steps: int


def _squares(*edges: int) -> tuple[Size, ...]:
    return tuple(Size(edge, edge) for edge in edges)


MIXES: Final[Mapping[ModelId, Mix]] = {
    SD3: Mix(
        steps=20,
        sizes=_squares(128, 256, 512, 1024, 1536),
        rate_per_gpu=None,
        three=(Size(512, 512), Size(1024, 1024), Size(1536, 1536)),
        three_steps=20,
    ),
    FLUX: Mix(
        steps=28,
        sizes=_squares(128, 256, 512, 1024, 2048),
        rate_per_gpu=2.625 / 128,
        three=(Size(512, 512), Size(1024, 1024), Size(2048, 2048)),
        three_steps=28,
    ),
    COG: Mix(
        steps=6,
        sizes=tuple(Size(768, width, n) for width in (432, 1360) for n in (17, 33, 65, 81)),
        rate_per_gpu=1.5 / 128,
        three=(Size(768, 432, 33), Size(768, 432, 81), Size(768, 1360, 81)),
        three_steps=22,
    ),
    HUNYUAN: Mix(
        steps=4,
        sizes=(
            *(Size(960, 544, frames) for frames in (17, 33, 65, 129)),
            *(Size(720, 1280, frames) for frames in (17, 33, 65, 129)),
        ),
        rate_per_gpu=0.7114 / 128,  # the published 1.0/s asks for more than 128 GPUs have
        # 720x1280x129 as the long class would ask for 1.3 times what 8 GPUs have over the hour.
        three=(Size(960, 544, 17), Size(960, 544, 65), Size(960, 544, 129)),
        three_steps=12,
    ),
}


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What a workload is made for; `steps` and `duration_s` None mean the workload's own.

    `gpus` is the part of the cluster that the load is reckoned for: models share it. `turn` is the
    model's place among those that share it.
    """

    model: ModelId
    gpus: float
    gpu_seconds: GpuSeconds
    turn: int = 0
    seed: int = 0
    rate_scale: float = 1.0
    steps: int | None = None
    duration_s: float | None = None

    @property
    def mix(self) -> Mix:
        """Return what the model is asked for.

        Raises:
            TraceError: nobody defined a mix for the model.
        """
        if self.model not in MIXES:
            message = (
                f"No workload is defined for model {self.model!r}, only for {', '.join(MIXES)}; "
                "bring a trace file instead."
            )
            raise TraceError(message)
        return MIXES[self.model]


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of time with one mix at one mean rate; `share` is of the whole duration."""

    share: float
    rate_rps: float
    steps: int
    sizes: tuple[Size, ...]
    weights: tuple[float, ...]


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
            phase.share * phase.rate_rps * _mean_cost(setting, phase)
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
                yield _row(next(sizes), setting.model, phase.steps, begin_s + offset_s)
            begin_s += length_s


def workload(name: str) -> Workload:
    """Return a workload by its name.

    Raises:
        TraceError: there is none of this name.
    """
    if name not in WORKLOADS:
        raise TraceError(f"No workload is named {name!r}; there are {', '.join(WORKLOADS)}.")
    return WORKLOADS[name]


def _row(size: Size, model: ModelId, steps: int, arrival_s: float) -> TraceRow:
    return TraceRow(
        arrival_s=round(arrival_s, 3),
        height=size.height,
        width=size.width,
        frames=size.frames,
        steps=steps,
        model=model,
    )


def _mean_cost(setting: Setting, phase: Phase) -> float:
    """Return the mean GPU-seconds of a request of this phase."""
    total = sum(
        weight * setting.gpu_seconds(_row(size, setting.model, phase.steps, 0.0))
        for size, weight in zip(phase.sizes, phase.weights, strict=True)
    )
    return total / sum(phase.weights)


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


def _uniform(count: int) -> tuple[float, ...]:
    return (1.0,) * count


def _mostly_small(count: int) -> tuple[float, ...]:
    return tuple(MIX_SPREAD ** (-i / max(1, count - 1)) for i in range(count))


def _mostly_large(count: int) -> tuple[float, ...]:
    return _mostly_small(count)[::-1]


def _popular(count: int) -> tuple[float, ...]:
    return tuple((i + 1) ** -POPULARITY_EXPONENT for i in range(count))


def _evenly(_: random.Random, rate_rps: float, duration_s: float) -> Iterator[float]:
    count = round(rate_rps * duration_s)
    return (i / rate_rps for i in range(count))


def _poisson(rng: random.Random, rate_rps: float, duration_s: float) -> Iterator[float]:
    now_s = rng.expovariate(rate_rps)
    while now_s < duration_s:
        yield now_s
        now_s += rng.expovariate(rate_rps)


def _in_bursts(rng: random.Random, rate_rps: float, duration_s: float) -> Iterator[float]:
    """Poisson at two levels in turns; every stretch lasts its mean, give or take a half."""
    begin_s, bursting = 0.0, False
    while begin_s < duration_s:
        mean_s, level = (BURST_S, BURST_LEVEL) if bursting else (CALM_S, CALM_LEVEL)
        length_s = min(mean_s * rng.uniform(0.5, 1.5), duration_s - begin_s)
        for offset_s in _poisson(rng, rate_rps * level, length_s):
            yield begin_s + offset_s
        begin_s, bursting = begin_s + length_s, not bursting


def _by_day(rng: random.Random, rate_rps: float, duration_s: float) -> Iterator[float]:
    """Poisson whose rate follows a sine from night to night, by thinning."""
    peak = 1 + DAY_SWING
    for now_s in _poisson(rng, rate_rps * peak, duration_s):
        level = 1 - DAY_SWING * math.cos(2 * math.pi * now_s / DAY_S)
        if rng.random() * peak < level:
            yield now_s


def _clumped(rng: random.Random, rate_rps: float, duration_s: float) -> Iterator[float]:
    """Gamma-distributed gaps that vary more than their mean."""
    shape = GAP_VARIATION**-2
    scale_s = 1 / (rate_rps * shape)
    now_s = rng.gammavariate(shape, scale_s)
    while now_s < duration_s:
        yield now_s
        now_s += rng.gammavariate(shape, scale_s)


class _Spell(msgspec.Struct, frozen=True):
    """A phase before its rate is known."""

    share: float
    rho: float
    weigh: Callable[[int], tuple[float, ...]]
    steps: float = 1.0  # times the usual


def _at_load(*spells: _Spell) -> Callable[[Setting, int], tuple[Phase, ...]]:
    """Return phases over the usual sizes at given offered loads."""

    def phases(setting: Setting, steps: int) -> tuple[Phase, ...]:
        return tuple(_loaded(setting, steps, spell) for spell in spells)

    return phases


def _loaded(setting: Setting, steps: int, spell: _Spell) -> Phase:
    sizes = setting.mix.sizes
    at_one = Phase(
        share=spell.share,
        rate_rps=1.0,
        steps=max(1, round(spell.steps * steps)),
        sizes=sizes,
        weights=spell.weigh(len(sizes)),
    )
    rate_rps = spell.rho * setting.gpus / _mean_cost(setting, at_one)
    return msgspec.structs.replace(at_one, rate_rps=rate_rps)


def _as_published(setting: Setting, steps: int) -> tuple[Phase, ...]:
    """Return the published rate per GPU, whatever the load; .80 where none is known."""
    phase = _loaded(setting, steps, _Spell(1.0, 0.80, _uniform))
    per_gpu = setting.mix.rate_per_gpu
    if per_gpu is None:
        return (phase,)
    return (msgspec.structs.replace(phase, rate_rps=per_gpu * setting.gpus),)


def _bursty(setting: Setting, steps: int) -> tuple[Phase, ...]:
    rho = 0.70 if setting.mix.sizes[-1].frames == 1 else 0.79
    return (_loaded(setting, steps, _Spell(1.0, rho, _uniform)),)


_FIVE_MINUTES: Final = (10, 15, 15, 10, 10)
_FIVE_PER_MINUTE: Final = (0.8, 1.4, 2.4, 1.2, 0.6)  # on 8 GPUs
_FIVE_WEIGHTS: Final = (
    (0.50, 0.35, 0.15),
    (0.35, 0.40, 0.25),
    (0.50, 0.30, 0.20),
    (0.20, 0.35, 0.45),
    (0.55, 0.35, 0.10),
)


def _five_phases(setting: Setting, steps: int) -> tuple[Phase, ...]:
    """Return GF-DiT's imitation of a dynamic workload, per 8 GPUs.

    Its rates are those of video. Images keep the phases and mixes, with all rates multiplied so
    that the mean load is `IMAGE_FIVE_PHASE_RHO`.
    """
    phases = tuple(
        Phase(
            share=minutes / sum(_FIVE_MINUTES),
            rate_rps=per_minute / 60 * setting.gpus / 8,
            steps=steps,
            sizes=setting.mix.three,
            weights=weights,
        )
        for minutes, per_minute, weights in zip(
            _FIVE_MINUTES, _FIVE_PER_MINUTE, _FIVE_WEIGHTS, strict=True
        )
    )
    if setting.mix.three[0].frames > 1:
        return phases
    asked = sum(p.share * p.rate_rps * _mean_cost(setting, p) for p in phases)
    factor = IMAGE_FIVE_PHASE_RHO * setting.gpus / asked
    return tuple(msgspec.structs.replace(p, rate_rps=p.rate_rps * factor) for p in phases)


_DYNAMIC: Final = (
    _Spell(1 / 6, 0.60, _mostly_small),
    _Spell(1 / 6, 0.80, _uniform),
    _Spell(1 / 6, 0.90, _mostly_large),
    _Spell(1 / 6, 0.90, _mostly_small),
    _Spell(1 / 6, 0.60, _mostly_large),
    _Spell(1 / 6, 0.80, _uniform),
)

_DRAFTS: Final = (
    _Spell(1 / 3, 0.80, _uniform, steps=3.0),
    _Spell(1 / 3, 0.80, _uniform, steps=1 / 3),
    _Spell(1 / 3, 0.80, _uniform, steps=3.0),
)
_BUSY, _QUIET = 1.6, 0.4  # of an even share of the load, by turns
_HANDOVER_RHO: Final = 0.70


def _hand_over(setting: Setting, steps: int) -> tuple[Phase, ...]:
    """Return three phases in which models are busy and quiet by turns, the first one first."""
    levels = (_BUSY, _QUIET) if setting.turn % 2 == 0 else (_QUIET, _BUSY)
    return tuple(
        _loaded(setting, steps, _Spell(1 / 3, _HANDOVER_RHO * level, _uniform))
        for level in (levels[0], levels[1], levels[0])
    )


WORKLOADS: Final[Mapping[str, Workload]] = {
    recipe.name: recipe
    for recipe in (
        Workload(
            name="hetu",
            about="like the published traces: evenly spaced, sizes exactly balanced and shuffled",
            phases=_as_published,
            arrivals=_evenly,
            balanced=True,
        ),
        Workload(
            name="poisson",
            about="the rate and sizes of hetu with exponential gaps and independent sizes",
            phases=_as_published,
            arrivals=_poisson,
        ),
        Workload(
            name="bursts",
            about="uniform sizes, load .70 (images) or .79 (video), in calm and bursting stretches",
            phases=_bursty,
            arrivals=_in_bursts,
        ),
        Workload(
            name="diurnal",
            about="uniform sizes, mean load .60, the rate follows a day of 30 minutes",
            phases=_at_load(_Spell(1.0, 0.60, _uniform)),
            arrivals=_by_day,
        ),
        Workload(
            name="light",
            about="mostly small sizes, Poisson, load .80",
            phases=_at_load(_Spell(1.0, 0.80, _mostly_small)),
            arrivals=_poisson,
        ),
        Workload(
            name="medium",
            about="uniform sizes, Poisson, load .80",
            phases=_at_load(_Spell(1.0, 0.80, _uniform)),
            arrivals=_poisson,
        ),
        Workload(
            name="heavy",
            about="mostly large sizes, Poisson, load .80",
            phases=_at_load(_Spell(1.0, 0.80, _mostly_large)),
            arrivals=_poisson,
        ),
        Workload(
            name="dynamic",
            about="six equal phases that change mix and load (.60 to .90), Poisson",
            phases=_at_load(*_DYNAMIC),
            arrivals=_poisson,
        ),
        Workload(
            name="drafts",
            about="finals of 3 x the steps, then drafts of a third, then finals; Poisson, load .80",
            phases=_at_load(*_DRAFTS),
            arrivals=_poisson,
            duration_s=2700.0,
        ),
        Workload(
            name="handover",
            about="several models, busy and quiet by turns in three phases, Poisson, load .70",
            phases=_hand_over,
            arrivals=_poisson,
            duration_s=2700.0,
        ),
        Workload(
            name="proprietary",
            about="clumped arrivals, small sizes popular and large ones rare, load .70",
            phases=_at_load(_Spell(1.0, 0.70, _popular)),
            arrivals=_clumped,
        ),
        Workload(
            name="five-phase",
            about="one hour of short, middle and long requests in five phases, Poisson",
            phases=_five_phases,
            arrivals=_poisson,
            duration_s=3600.0,
            three=True,
        ),
    )
}
