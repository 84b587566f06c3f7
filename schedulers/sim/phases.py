"""Stretches of a workload with one mix at one mean rate, set by the load that they offer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from engine.types import ModelId
from schedulers.errors import TraceError
from schedulers.sim.mixes import MIXES, Mix, Size
from schedulers.sim.traces import TraceRow

GpuSeconds = Callable[[TraceRow], float]

MIX_SPREAD: Final = 16.0  # how much likelier one end of the sizes is than the other
POPULARITY_EXPONENT: Final = 1.2  # of `popular`: the i-th smallest size has weight i^-1.2
IMAGE_FIVE_PHASE_RHO: Final = 0.75


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


def row(size: Size, model: ModelId, steps: int, arrival_s: float) -> TraceRow:
    """Return a request of a size."""
    return TraceRow(
        arrival_s=round(arrival_s, 3),
        height=size.height,
        width=size.width,
        frames=size.frames,
        steps=steps,
        model=model,
    )


def mean_cost(setting: Setting, phase: Phase) -> float:
    """Return the mean GPU-seconds of a request of this phase."""
    total = sum(
        weight * setting.gpu_seconds(row(size, setting.model, phase.steps, 0.0))
        for size, weight in zip(phase.sizes, phase.weights, strict=True)
    )
    return total / sum(phase.weights)


def uniform(count: int) -> tuple[float, ...]:
    """Weigh all sizes alike."""
    return (1.0,) * count


def mostly_small(count: int) -> tuple[float, ...]:
    """Weigh the smallest size `MIX_SPREAD` times as much as the largest."""
    return tuple(MIX_SPREAD ** (-i / max(1, count - 1)) for i in range(count))


def mostly_large(count: int) -> tuple[float, ...]:
    """Weigh the largest size `MIX_SPREAD` times as much as the smallest."""
    return mostly_small(count)[::-1]


def popular(count: int) -> tuple[float, ...]:
    """Weigh sizes as things that differ in popularity: few are common, the rest is rare."""
    return tuple((i + 1) ** -POPULARITY_EXPONENT for i in range(count))


class Spell(msgspec.Struct, frozen=True):
    """A phase before its rate is known."""

    share: float
    rho: float
    weigh: Callable[[int], tuple[float, ...]]
    steps: float = 1.0  # times the usual


def at_load(*spells: Spell) -> Callable[[Setting, int], tuple[Phase, ...]]:
    """Return phases over the usual sizes at given offered loads."""

    def phases(setting: Setting, steps: int) -> tuple[Phase, ...]:
        return tuple(_loaded(setting, steps, spell) for spell in spells)

    return phases


def _loaded(setting: Setting, steps: int, spell: Spell) -> Phase:
    sizes = setting.mix.sizes
    at_one = Phase(
        share=spell.share,
        rate_rps=1.0,
        steps=max(1, round(spell.steps * steps)),
        sizes=sizes,
        weights=spell.weigh(len(sizes)),
    )
    rate_rps = spell.rho * setting.gpus / mean_cost(setting, at_one)
    return msgspec.structs.replace(at_one, rate_rps=rate_rps)


def as_published(setting: Setting, steps: int) -> tuple[Phase, ...]:
    """Return the published rate per GPU, whatever the load; .80 where none is known."""
    phase = _loaded(setting, steps, Spell(1.0, 0.80, uniform))
    per_gpu = setting.mix.rate_per_gpu
    if per_gpu is None:
        return (phase,)
    return (msgspec.structs.replace(phase, rate_rps=per_gpu * setting.gpus),)


def bursty(setting: Setting, steps: int) -> tuple[Phase, ...]:
    """Return one phase of uniform sizes at a load that leaves room for bursts."""
    rho = 0.70 if setting.mix.sizes[-1].frames == 1 else 0.79
    return (_loaded(setting, steps, Spell(1.0, rho, uniform)),)


_FIVE_MINUTES: Final = (10, 15, 15, 10, 10)
_FIVE_PER_MINUTE: Final = (0.8, 1.4, 2.4, 1.2, 0.6)  # on 8 GPUs
_FIVE_WEIGHTS: Final = (
    (0.50, 0.35, 0.15),
    (0.35, 0.40, 0.25),
    (0.50, 0.30, 0.20),
    (0.20, 0.35, 0.45),
    (0.55, 0.35, 0.10),
)


def five_phases(setting: Setting, steps: int) -> tuple[Phase, ...]:
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
    asked = sum(p.share * p.rate_rps * mean_cost(setting, p) for p in phases)
    factor = IMAGE_FIVE_PHASE_RHO * setting.gpus / asked
    return tuple(msgspec.structs.replace(p, rate_rps=p.rate_rps * factor) for p in phases)


DYNAMIC: Final = (
    Spell(1 / 6, 0.60, mostly_small),
    Spell(1 / 6, 0.80, uniform),
    Spell(1 / 6, 0.90, mostly_large),
    Spell(1 / 6, 0.90, mostly_small),
    Spell(1 / 6, 0.60, mostly_large),
    Spell(1 / 6, 0.80, uniform),
)

DRAFTS: Final = (
    Spell(1 / 3, 0.80, uniform, steps=3.0),
    Spell(1 / 3, 0.80, uniform, steps=1 / 3),
    Spell(1 / 3, 0.80, uniform, steps=3.0),
)
_BUSY, _QUIET = 1.6, 0.4  # of an even share of the load, by turns
_HANDOVER_RHO: Final = 0.70


def hand_over(setting: Setting, steps: int) -> tuple[Phase, ...]:
    """Return three phases in which models are busy and quiet by turns, the first one first."""
    levels = (_BUSY, _QUIET) if setting.turn % 2 == 0 else (_QUIET, _BUSY)
    return tuple(
        _loaded(setting, steps, Spell(1 / 3, _HANDOVER_RHO * level, uniform))
        for level in (levels[0], levels[1], levels[0])
    )
