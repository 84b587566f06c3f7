"""Which cells every experiment consists of; docs/benchmarks.md says what each is to show.

An experiment is a list of plans. A plan yields cells one after another and is sent their figures,
so that a search can choose the next rate; plans do not depend on one another.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import Any, Final

import msgspec

from benchmarks.scheduling.cells import BOUND, Cell
from benchmarks.scheduling.knees import GRID, Curve, around, search

Figures = dict[str, Any]
Plan = Generator[Cell, Figures, None]

COG, HUNYUAN, FLUX, SD3 = "cogvideox1.5-5b", "hunyuanvideo", "flux1", "sd3"
MODELS: Final = (COG, HUNYUAN, FLUX, SD3)
BEST_STATIC: Final = {COG: "b1-sp8", HUNYUAN: "b1-sp8", FLUX: "b1-sp2", SD3: "b1-sp1"}
"""The narrowest static degree at which memory holds every class (`static` measures the others)."""
STATICS: Final = ("b1-sp1", "b1-sp2", "b1-sp4", "b1-sp8")
DYNAMICS: Final = ("b2", "b3", "b4", "b5", "b6", "edf-best-fit", "deadline-rounds", "trident-paper")
SEEDS: Final = (1, 2, 3)
SMALL_SEEDS: Final = tuple(range(1, 11))
SWITCHES: Final = (
    "preempt",
    "claim",
    "scale_up",
    "resize",
    "background",
    "spill",
    "deadline_order",
)
BARE: Final = dict.fromkeys(("preempt", "scale_up", "background", "spill", "prefetch"), False)
EXTRAS: Final[tuple[dict[str, bool | int], ...]] = (
    {"demote": True},
    {"prefetch": True},
    {"reserve": True},
    {"refuse": True},
    {"shrink": True},
    {"elders_per_16_nodes": 1},
)
SHOWN: Final = {"True": "on", "False": "off"}
NO_POOL: Final = {"decode": 0}
OTHER_WORKLOADS: Final = ("light", "medium", "heavy", "dynamic", "proprietary")
POOLS: Final = {COG: (0, 4, 6, 7, 8, 10, 12, 16), HUNYUAN: (0, 4, 5, 6, 8, 12), FLUX: (0, 2, 4)}
GOODPUT_GPUS: Final = {COG: 128, HUNYUAN: 128, FLUX: 32, SD3: 16}
"""Smaller for images: overload of as many requests takes minutes a point."""
KNEE_PAIRS: Final = ("trident", "deadline-rounds")
"""Whose 90 % knees are looked for with more seeds: ours and the best dynamic baseline's."""
KNEE_BEGINS: Final = {COG: 8, HUNYUAN: 14, FLUX: 17, SD3: 10}
"""Steps of the grid from which those searches begin."""
WORKLOAD_GPUS: Final = {COG: 64, HUNYUAN: 64, FLUX: 64, SD3: 16}
DYNAMIC_POOLS: Final = {COG: (4, 7, 10), HUNYUAN: (4, 6, 8), FLUX: (0, 2)}
SHIFTING_POOLS: Final = {32: (1, 2, 4, 7), 128: (3, 7, 16, 23)}
PAIR: Final = f"{FLUX}+{HUNYUAN}"
PAIR_SIZES: Final = ((22, 8, 1), (16, 8, 7), (14, 16, 1), (8, 16, 7), (6, 24, 1))
"""Primaries of Flux and of HunyuanVideo, and devices that only decode, of 31 beside one encoder."""
ENCODERS: Final = {COG: 1, HUNYUAN: 1, FLUX: 0}
WEEK_S: Final = 7 * 86_400.0
QUICK: Final = ("published", "robustness")
NOMINAL_SLO: Final = 2.5


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """What of an experiment is asked for; an empty choice means all."""

    models: tuple[str, ...] = MODELS
    policies: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ()
    rates: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    trace: bool = False
    quick: bool = False

    def takes(self, cell: Cell) -> bool:
        """Say whether a cell is wanted."""
        if not set(cell.models) <= set(self.models):
            return False
        choices: tuple[tuple[tuple[Any, ...], Any], ...] = (
            (self.policies, policy_name(cell)),
            (self.workloads, cell.workload),
            (self.rates, cell.rate_scale),
            (self.seeds, cell.seed),
        )
        return all(not choice or value in choice for choice, value in choices)


def policy_name(cell: Cell) -> str:
    """Return what tables call a policy: solver and switches included."""
    parts = [cell.policy]
    if cell.solver is not None:
        parts.append(cell.solver)
    parts += [f"{name}={SHOWN.get(str(on), on)}" for name, on in cell.switches.items()]
    if cell.sizes is not None:
        parts += [f"{name} {count}" for name, count in sorted(cell.sizes.items())]
    return " ".join(parts)


def describe(cell: Cell) -> str:
    """Return a cell in a line."""
    extra = "".join(
        [
            f" slo {cell.slo_scale:g}" if cell.slo_scale != NOMINAL_SLO else "",
            f" noise {cell.noise:g}" if cell.noise else "",
            f" failing {','.join(cell.failures)}" if cell.failures else "",
        ]
    )
    where = f"{cell.model} {cell.workload} x{cell.rate_scale:g} seed {cell.seed} on {cell.gpus}"
    return f"{policy_name(cell)} | {where}{extra}"


def once(cell: Cell) -> Plan:
    """Plan one cell."""
    yield cell


def usual(model: str, **changes: Any) -> Cell:
    """Return the cell that stands for a model at nominal load, with changes."""
    sd3 = {"workload": "poisson", "gpus": 32} if model == SD3 else {}
    return Cell(**{"policy": "trident", "model": model, **sd3, **changes})


def published(scope: Scope) -> Iterator[Cell]:
    """Replay the published CogVideoX trace, and the generator's like of it."""
    if scope.quick:
        yield from (usual(COG, policy=name) for name in ("trident", "b1-sp8", "b6"))
        return
    sources = [{"workload": "trace", "seed": 0}] if scope.trace else []
    for source in [*sources, {}]:
        common = {**source, "steps": 6} if source else {}
        for name in ("trident", "b1-sp8", "b6", "edf-best-fit", "b4", "trident-paper"):
            yield usual(COG, policy=name, **common)
        yield usual(COG, policy="b6", sizes=NO_POOL, **common)
        yield usual(COG, switches={"reserve": True}, **common)
        yield usual(COG, solver="ilp", **common)
        for name in ("deadline-rounds", "b3", "b5", "b2", "b1-sp4", "b1-sp2", "b1-sp1"):
            yield usual(COG, policy=name, **common)
    for seed in SEEDS[1:]:
        for name in ("trident", "b1-sp8", "b6", "edf-best-fit"):
            yield usual(COG, policy=name, seed=seed)


def contenders(model: str) -> list[dict[str, Any]]:
    """Return the policies that are compared everywhere, the most telling first."""
    names = (BEST_STATIC[model], "b6", "edf-best-fit", "b4", "trident-paper", "deadline-rounds")
    others = [{"policy": name} for name in (*names, "b3", "b5", "b2")]
    return [{"policy": "trident"}, *others, {"policy": "trident", "solver": "ilp"}]


def nominal(scope: Scope) -> Iterator[Cell]:
    """Run every model at its nominal load: the fixed trace, then fresh Poisson seeds."""
    del scope
    for situation in situations():
        for policy in contenders(situation["model"]):
            yield usual(**{**situation, **policy})


def situations() -> list[dict[str, Any]]:
    """Return what every policy is compared on, the fixed traces first."""
    found: list[dict[str, Any]] = [{"model": m} for m in (HUNYUAN, FLUX, SD3)]
    found += [{"model": SD3, "workload": "bursts", "gpus": 56}]
    small = {"workload": "five-phase", "gpus": 8}
    for seed in SMALL_SEEDS:
        found += [{"model": m, "seed": seed, **small} for m in (COG, HUNYUAN)]
    for seed in SEEDS:
        found += [{"model": m, "workload": "poisson", "seed": seed} for m in MODELS]
        found += [{"model": SD3, "workload": "bursts", "gpus": 56, "seed": seed}]
    return found


def static(scope: Scope) -> Iterator[Cell]:
    """Run every static degree, to see which is the best; SD3's queues would take minutes on 32 GPUs."""
    del scope
    for model in MODELS:
        one_node = {"gpus": 8} if model == SD3 else {}
        for name in STATICS:
            yield usual(model, policy=name, **one_node)


def workloads(scope: Scope) -> Iterator[Cell]:
    """Run our other workloads on half the GPUs."""
    del scope
    for name in OTHER_WORKLOADS:
        for model in MODELS:
            for policy in contenders(model):
                yield usual(model, **policy, workload=name, gpus=WORKLOAD_GPUS[model])


def goodput(scope: Scope) -> Iterator[Plan]:
    """Look for the rates up to which 90 % and 99 % are on time, and for the curve around them."""
    for model in MODELS:
        for policy in [*contenders(model), {"policy": BOUND}]:
            cell = usual(model, **policy, gpus=GOODPUT_GPUS[model])
            if scope.takes(cell):
                yield curve(cell, search)
    for seed in SEEDS[1:]:
        for model in MODELS:
            for name in (*KNEE_PAIRS, BOUND):
                cell = usual(model, policy=name, gpus=GOODPUT_GPUS[model], seed=seed)
                if scope.takes(cell):
                    yield curve(cell, partial(around, begin=KNEE_BEGINS[model]))


def curve(cell: Cell, search: Callable[[Curve], Iterator[int]]) -> Plan:
    """Search along the rates of one policy on one model."""
    found: Curve = {}
    for step in search(found):
        figures = yield msgspec.structs.replace(cell, rate_scale=GRID[step])
        found[step] = figures["slo_attainment"]


def bound(scope: Scope) -> Iterator[Cell]:
    """Reckon what nobody can exceed, for every situation of `nominal` and `workloads`."""
    del scope
    yield usual(COG, policy=BOUND)
    for situation in situations():
        yield usual(**{**situation, "policy": BOUND})
    for name in OTHER_WORKLOADS:
        for model in MODELS:
            yield usual(model, policy=BOUND, workload=name, gpus=WORKLOAD_GPUS[model])


def ablation(scope: Scope) -> Iterator[Cell]:
    """Remove every addition from the whole, and add each alone to a bare policy."""
    del scope
    small = {"workload": "five-phase", "gpus": 8}
    loads: list[tuple[str, dict[str, Any]]] = [
        (COG, {"rate_scale": 1.2}),
        (HUNYUAN, {"rate_scale": 1.2}),
        *((COG, {"seed": seed, **small}) for seed in SEEDS),
        *((HUNYUAN, {"seed": seed, **small}) for seed in SEEDS),
        (FLUX, {"rate_scale": 1.2, "gpus": 32}),
        (COG, {}),
        (HUNYUAN, {}),
        (FLUX, {"gpus": 32}),
        (SD3, {"workload": "bursts", "gpus": 16}),
    ]
    for model, situation in loads:
        sizes = without_pool(model, situation.get("gpus", 128))
        for variant in variants(sizes):
            yield usual(model, **{**situation, **variant})
    for switches in ({}, {"claim": False}, {"scale_up": False}, {"resize": False}):
        yield usual(SD3, workload="light", gpus=16, switches=switches)


def without_pool(model: str, gpus: int) -> dict[str, int] | None:
    """Return sizes without a decode pool where there would be one, else None."""
    pooled = model in {COG, HUNYUAN} and gpus > 8  # noqa: PLR2004 - one node has no pool
    by_hand = {"decode": 0, "encode": 1} if model == HUNYUAN else NO_POOL
    return dict(by_hand) if pooled else None


def variants(sizes: dict[str, int] | None) -> list[dict[str, Any]]:
    """Return the whole, the whole without or with one, the bare policy, and it with one."""
    removed: list[dict[str, Any]] = [{"switches": {name: False}} for name in SWITCHES]
    extra: list[dict[str, Any]] = [{"switches": dict(switches)} for switches in EXTRAS]
    added: list[dict[str, Any]] = [{"switches": {**BARE, name: True}} for name in BARE]
    bare: list[dict[str, Any]] = [{"switches": BARE}, *added]
    if sizes is None:
        return [{}, *removed, *extra, *bare]
    poolless = [{**variant, "sizes": sizes} for variant in bare]
    return [{}, *removed, {"sizes": sizes}, *extra, *poolless, {"switches": BARE}]


def orchestrator(scope: Scope) -> Iterator[Cell]:
    """Let the orchestrator size the pools, and sweep sizes by hand."""
    del scope
    for model, sizes in POOLS.items():
        yield usual(model)
        for size in sizes:
            yield usual(model, sizes={"decode": size, "encode": ENCODERS[model]})
    for model in (COG, HUNYUAN, FLUX):
        yield usual(model, workload="dynamic")
        for size in DYNAMIC_POOLS[model]:
            by_hand = {"decode": size, "encode": ENCODERS[model]}
            yield usual(model, workload="dynamic", sizes=by_hand)


def shifts(scope: Scope) -> Iterator[Cell]:
    """Shift the mix so far that the placement has to follow; hand-sized ones stay as they are."""
    del scope
    for seed in SEEDS:
        pair = {"workload": "handover", "gpus": 32, "seed": seed}
        yield usual(PAIR, **pair)
        for flux, hunyuan, decode in PAIR_SIZES:
            models = {FLUX: flux, HUNYUAN: hunyuan}
            by_hand = {"decode": decode, "encode": 1, "models": models}
            yield usual(PAIR, sizes=by_hand, **pair)
        for gpus, pools in SHIFTING_POOLS.items():
            drafts = {"workload": "drafts", "gpus": gpus, "seed": seed}
            yield usual(COG, **drafts)
            for size in pools:
                by_hand = {"decode": size, "encode": int(size % 8 == 7)}  # noqa: PLR2004 - fills a node
                yield usual(COG, sizes=by_hand, **drafts)


def tight(scope: Scope) -> Iterator[Cell]:
    """Turn spill and prefetch where they could matter: pools too small, weights that are loaded."""
    del scope
    few = {"decode": 4, "encode": 1}
    for on in (True, False):
        yield usual(COG, sizes=few, switches={"spill": on})
    for seed in SEEDS:
        for on in (False, True):
            switches = {"prefetch": on}
            yield usual(PAIR, workload="handover", gpus=32, seed=seed, switches=switches)
            yield usual(HUNYUAN, workload="five-phase", gpus=8, seed=seed, switches=switches)


def robustness(scope: Scope) -> Iterator[Cell]:
    """Disturb: a node that dies, durations that scatter, deadlines that are tight or loose."""
    if scope.quick:
        yield usual(COG, failures=("3@600",))
        return
    for model in MODELS:
        yield usual(model)
        yield usual(model, noise=0.2)
    for name in ("trident", "b6", "edf-best-fit"):
        yield usual(COG, policy=name, failures=("3@600",))
    yield usual(COG, noise=0.2, failures=("3@600",))
    yield usual(HUNYUAN, failures=("3@600",))
    for scale in (1.5, 5.0):
        for model in (COG, HUNYUAN):
            for name in ("trident", "b6", "edf-best-fit"):
                yield usual(model, policy=name, slo_scale=scale)
    for model in (COG, HUNYUAN, FLUX, SD3):
        yield from (usual(model, noise=0.2, seed=seed) for seed in SEEDS[1:])


def ilp(scope: Scope) -> Iterator[Cell]:
    """Run the integer program and the greedy in the same loop."""
    del scope
    for model in MODELS:
        for rate in (1.0, GRID[4]):
            for solver in (None, "ilp"):
                yield usual(model, solver=solver, rate_scale=rate)
    for seed in SEEDS:
        for model in (COG, HUNYUAN):
            for solver in (None, "ilp"):
                yield usual(model, solver=solver, workload="five-phase", gpus=8, seed=seed)


def scale(scope: Scope) -> Iterator[Cell]:
    """Time half an hour of 128 GPUs, and watch memory over a week."""
    del scope
    yield usual(COG)
    yield usual(HUNYUAN)
    yield usual(SD3, workload="diurnal", gpus=8, rate_scale=0.05, duration_s=WEEK_S, memory=True)


CELLS: Final[dict[str, Callable[[Scope], Iterator[Cell]]]] = {
    "published": published,
    "nominal": nominal,
    "bound": bound,
    "ablation": ablation,
    "robustness": robustness,
    "orchestrator": orchestrator,
    "shifts": shifts,
    "tight": tight,
    "ilp": ilp,
    "static": static,
    "workloads": workloads,
    "scale": scale,
}
EXPERIMENTS: Final = ("published", "nominal", "goodput", *list(CELLS)[2:])


def plans(name: str, scope: Scope) -> Iterable[Plan]:
    """Return the plans of an experiment."""
    if name == "goodput":
        return goodput(scope)
    wanted = {cell.key: cell for cell in CELLS[name](scope) if scope.takes(cell)}
    return [once(cell) for cell in wanted.values()]
