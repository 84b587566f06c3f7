"""Markdown tables from results on disk; every figure in them is simulated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean
from typing import Any, Final

from benchmarks.scheduling.cells import BOUND, Cell
from benchmarks.scheduling.experiments import (
    BARE,
    BEST_STATIC,
    COG,
    EXTRAS,
    FLUX,
    HUNYUAN,
    MODELS,
    SD3,
    SWITCHES,
    policy_name,
    without_pool,
)
from benchmarks.scheduling.store import RESULTS, Entry, read

NAMES: Final = {COG: "CogVideoX", HUNYUAN: "HunyuanVideo", FLUX: "Flux", SD3: "SD3"}
THREE_DIGITS: Final = 100
LONG_CLASS: Final = {COG: "768x1360x81", HUNYUAN: "960x544x129"}
Seeds = list[Entry]


def entries(experiment: str) -> list[Entry]:
    """Return all cells of an experiment."""
    return list(read(RESULTS / f"{experiment}.json").values())


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table, or a sentence if nothing was simulated yet."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if not lines:
        return "Not simulated yet."
    rule = "| " + " | ".join(["---"] + ["---:"] * (len(header) - 1)) + " |"
    return "\n".join(["| " + " | ".join(header) + " |", rule, *lines])


def share(value: float | None) -> str:
    """Return a share as the literature prints it, with three digits behind the point."""
    return "-" if value is None else f"{value:.3f}".replace("0.", ".", 1)


def seconds(value: float | None) -> str:
    """Return seconds with three digits."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= THREE_DIGITS else f"{value:.3g}"


def average(seeds: Seeds, name: str) -> float | None:
    """Return a figure's mean over seeds; None if no seed has it."""
    values = [entry.figures[name] for entry in seeds if entry.figures.get(name) is not None]
    return mean(values) if values else None


def grouped(found: Iterable[Entry], key: Callable[[Cell], Any]) -> dict[Any, Seeds]:
    """Group cells, those of one seed after another."""
    groups: dict[Any, Seeds] = {}
    for entry in sorted(found, key=lambda entry: entry.cell.seed):
        groups.setdefault(key(entry.cell), []).append(entry)
    return groups


def by_attainment(groups: Mapping[str, Seeds]) -> list[tuple[str, Seeds]]:
    """Order policies: the bound, then the best first."""

    def rank(item: tuple[str, Seeds]) -> tuple[bool, float, float]:
        name, seeds = item
        late = -(average(seeds, "slo_attainment") or 0.0)
        return (name != BOUND, late, average(seeds, "mean_s") or 0.0)

    return sorted(groups.items(), key=rank)


def figures_row(name: str, seeds: Seeds) -> list[str]:
    """Return what every table of policies shows: means over seeds."""
    times = [seconds(average(seeds, f)) for f in ("mean_s", "p50_s", "p95_s", "p99_s")]
    return [name, str(len(seeds)), share(average(seeds, "slo_attainment")), *times]


FIGURES_HEADER: Final = ("policy", "seeds", "on time", "mean s", "P50 s", "P95 s", "P99 s")


def published() -> str:
    """Return the rows of the published trace and of the generator."""
    parts = []
    for source, title in (("trace", "The published file"), ("hetu", "The generator `hetu`")):
        found = [entry for entry in entries("published") if entry.cell.workload == source]
        groups = grouped(found, policy_name)
        rows = [
            [*figures_row(name, seeds), class_share(seeds, LONG_CLASS[COG]), rejected(seeds)]
            for name, seeds in by_attainment(groups)
        ]
        header = (*FIGURES_HEADER, "largest class on time", "rejected")
        parts += [f"{title} (simulated)", markdown(header, rows)]
    return "\n\n".join(parts)


def class_share(seeds: Seeds, *names: str) -> str:
    """Return the share of requests of some classes that were on time, over all seeds."""
    groups = [
        entry.figures["per_class"][name]
        for entry in seeds
        for name in names
        if name in entry.figures.get("per_class", {})
    ]
    count = sum(group["requests"] for group in groups)
    on_time = sum(group["requests"] * group["slo_attainment"] for group in groups)
    return share(on_time / count) if count else "-"


def rejected(seeds: Seeds) -> str:
    """Return how many were rejected, over all seeds."""
    return str(sum(entry.figures.get("rejected", 0) for entry in seeds))


def title_of(cell: Cell) -> str:
    """Return where a cell was simulated."""
    rate = "" if cell.rate_scale == 1 else f" x {cell.rate_scale:g}"
    names = " and ".join(NAMES[model] for model in cell.models)
    return f"{names} `{cell.workload}`{rate} on {cell.gpus} GPUs"


def nominal() -> str:
    """Return one table per model and workload, with the bound in its first row."""
    return per_situation([*entries("nominal"), *bounds()])


def bounds() -> list[Entry]:
    """Return the bounds of all situations."""
    return entries("bound")


def per_situation(found: Sequence[Entry]) -> str:
    """Return one table per situation."""
    parts = []
    situations = grouped(found, lambda cell: (order_of(cell), title_of(cell)))
    for (_, title), members in sorted(situations.items()):
        rows = situation_rows(members)
        if len(rows) > 1:
            parts += [f"{title} (simulated)", markdown(situation_header(members), rows)]
    return "\n\n".join(parts) or "Not simulated yet."


def order_of(cell: Cell) -> tuple[int, int, str]:
    """Order situations by cluster and model."""
    return (-cell.gpus, MODELS.index(cell.model), cell.workload)


def situation_header(members: Seeds) -> tuple[str, ...]:
    """Return the columns; five phases have their own."""
    if members[0].cell.workload == "five-phase":
        return (*FIGURES_HEADER, "worst seed", "short, middle", "short", "last long, s")
    return (*FIGURES_HEADER, "worst seed")


def situation_rows(members: Seeds) -> list[list[str]]:
    """Return a row per policy, each over the seeds that were simulated of it."""
    rows = []
    for name, seeds in by_attainment(grouped(members, policy_name)):
        worst = share(min(entry.figures["slo_attainment"] for entry in seeds))
        row = [*figures_row(name, seeds), worst]
        if seeds[0].cell.workload == "five-phase":
            row += five_phase_columns(seeds)
        rows.append(row)
    return rows


def five_phase_columns(seeds: Seeds) -> list[str]:
    """Return the shares of short and middle requests, and when the last long one was done."""
    classes = sorted(
        {name for entry in seeds for name in entry.figures.get("per_class", {})}, key=volume
    )
    finishes = [
        entry.figures["last_finish_s"].get(classes[-1], 0.0)
        for entry in seeds
        if "last_finish_s" in entry.figures
    ]
    last = seconds(max(finishes)) if finishes else "-"
    return [class_share(seeds, *classes[:-1]), class_share(seeds, *classes[:1]), last]


def volume(shape: str) -> int:
    """Return the pixels of all frames of `HxWxF`."""
    height, width, frames = map(int, shape.split("x"))
    return height * width * frames


def ablation() -> str:
    """Return the change that every addition makes, in points of attainment and seconds of mean."""
    found = entries("ablation")
    situations = grouped(found, lambda cell: (order_of(cell), title_of(cell)))
    titles = sorted(situations)
    variants = {title: grouped(situations[title], variant) for title in titles}
    names = variant_order()
    rows = []
    for name in names:
        cells = [change(variants[title], name) for title in titles]
        if any(cells):
            rows.append([name, *cells])
    return markdown(("variant", *(title for _, title in titles)), rows)


def variant(cell: Cell) -> str:
    """Return what a cell differs in from the whole policy or from the bare one."""
    if set(BARE) <= set(cell.switches):
        added = [name for name, on in cell.switches.items() if on]
        pooled = without_pool(cell.model, cell.gpus) is not None and cell.sizes is None
        added += ["decode pool"] * pooled
        return f"bare, with {added[0]}" if added else "bare"
    if cell.sizes is not None:
        return "whole, without decode pool"
    if not cell.switches:
        return "whole"
    name, on = next(iter(cell.switches.items()))
    return f"whole, {'with' if on else 'without'} {name}"


def variant_order() -> list[str]:
    """Order the rows: the whole, what it loses, what it could gain, the bare policy with each."""
    gained = [f"whole, with {name}" for extra in EXTRAS for name in extra]
    lost = [f"whole, without {name}" for name in (*SWITCHES, "decode pool")]
    return ["whole", *lost, *gained, "bare", *(f"bare, with {n}" for n in (*BARE, "decode pool"))]


def change(variants: Mapping[str, Seeds], name: str) -> str:
    """Return attainment and mean: of a base as they are, of a variant as differences to it."""
    seeds = variants.get(name)
    if not seeds:
        return ""
    attained, mean_s = average(seeds, "slo_attainment"), average(seeds, "mean_s")
    if name in {"whole", "bare"}:
        return f"{share(attained)}, {seconds(mean_s)} s"
    base = variants.get(name.partition(",")[0])
    if not base or attained is None or mean_s is None:
        return ""
    points = 100 * (attained - (average(base, "slo_attainment") or 0.0))
    return f"{points:+.1f}, {mean_s - (average(base, 'mean_s') or 0.0):+.1f} s"


def orchestrator() -> str:
    """Return the orchestrator's placement beside those sized by hand."""
    parts = []
    situations = grouped(entries("orchestrator"), lambda cell: (order_of(cell), title_of(cell)))
    for (_, title), members in sorted(situations.items()):
        rows = [
            [name, *figures_row(name, seeds)[2:], *switching(seeds[0])]
            for name, seeds in by_attainment(grouped(members, sizing))
        ]
        header = ("pools", *FIGURES_HEADER[2:], "loads", "switches at s")
        parts += [f"{title} (simulated)", markdown(header, rows)]
    return "\n\n".join(parts) or "Not simulated yet."


def sizing(cell: Cell) -> str:
    """Return who sized the pools."""
    if cell.sizes is None:
        return "by the orchestrator"
    return f"{cell.sizes.get('decode', 0)} decode, {cell.sizes.get('encode', 0)} encode by hand"


def switching(entry: Entry) -> list[str]:
    """Return loads, and when placements switched."""
    moments = ", ".join(f"{at:.0f}" for at in entry.figures.get("switches_s", []))
    return [str(entry.figures["loads"]), moments or "-"]


def robustness() -> str:
    """Return one row per disturbance."""
    groups = grouped(entries("robustness"), disturbance)
    rows = [
        [title, what, *figures_row(name, seeds), rejected(seeds), lost(seeds)]
        for (_, title, what, name), seeds in sorted(groups.items())
    ]
    return markdown(("where", "disturbance", *FIGURES_HEADER, "rejected", "without output"), rows)


def disturbance(cell: Cell) -> tuple[Any, ...]:
    """Return what disturbs a cell."""
    parts = [
        f"noise {cell.noise:.0%}" if cell.noise else "",
        f"node {cell.failures[0]} s dies" if cell.failures else "",
        f"deadlines {cell.slo_scale:g} x" if cell.slo_scale != 2.5 else "",  # noqa: PLR2004
    ]
    what = ", ".join(part for part in parts if part) or "none"
    return (order_of(cell), title_of(cell), what, policy_name(cell))


def lost(seeds: Seeds) -> str:
    """Return how many requests ended without an output, over all seeds."""
    return str(sum(e.figures["requests"] - e.figures["finished"] for e in seeds))


def ilp() -> str:
    """Return greedy and integer program side by side."""
    groups = grouped(
        entries("ilp"), lambda cell: (order_of(cell), title_of(cell), policy_name(cell))
    )
    rows = [
        [title, *figures_row(name, seeds), *decisions(seeds)]
        for (_, title, name), seeds in sorted(groups.items())
    ]
    return markdown(("where", *FIGURES_HEADER, "P50 ms", "P99 ms", "CPU s"), rows)


def decisions(seeds: Seeds) -> list[str]:
    """Return real milliseconds of a decision and real seconds of the simulation."""
    names = ("decision_ms_p50", "decision_ms_p99", "cpu_s")
    return [seconds(average(seeds, name)) for name in names]


def scale() -> str:
    """Return what simulations cost."""
    rows = []
    for entry in entries("scale"):
        cell, figures = entry.cell, entry.figures
        memory = figures.get("memory_mib", [])
        shown = f"{memory[len(memory) // 4]:.0f} to {memory[-1]:.0f}" if memory else "-"
        rows.append(
            [
                f"{title_of(cell)}, {policy_name(cell)}",
                f"{figures['simulated_s']:.0f}",
                str(figures["requests"]),
                str(figures["decisions"]),
                seconds(figures["wall_s"]),
                seconds(figures["cpu_s"]),
                shown,
                f"{figures['peak_mib']:.0f}",
            ]
        )
    header = ("what", "simulated s", "requests", "decisions", "wall s", "CPU s")
    return markdown((*header, "MiB after a quarter and at the end", "peak MiB"), rows)


def static() -> str:
    """Return the static degrees per model; the best one that serves all classes is marked."""
    rows = []
    groups = grouped(entries("static"), lambda cell: (order_of(cell), cell.policy))
    for (_, name), seeds in sorted(groups.items()):
        model = seeds[0].cell.model
        mark = " (taken)" if BEST_STATIC[model] == name else ""
        rows.append([title_of(seeds[0].cell), *figures_row(name + mark, seeds), rejected(seeds)])
    return markdown(("where", *FIGURES_HEADER, "rejected"), rows)


def workloads() -> str:
    """Return our other workloads, with the bound in the first row."""
    return per_situation([*entries("workloads"), *bounds()])


def code() -> str:
    """Return which commits the figures of every experiment come from."""
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        groups = list(read(path).values())
        if not groups:
            continue
        revisions: dict[str, int] = {}
        for entry in groups:
            revisions[entry.revision] = revisions.get(entry.revision, 0) + 1
        dates = sorted(entry.date[:16] for entry in groups)
        shown = ", ".join(f"{name} ({count})" for name, count in sorted(revisions.items()))
        rows.append([path.stem, str(len(groups)), shown, f"{dates[0]} to {dates[-1]}"])
    return markdown(("experiment", "cells", "commits (cells)", "UTC"), rows)


TABLES: Final[dict[str, Callable[[], str]]] = {
    "published": published,
    "static": static,
    "nominal": nominal,
    "workloads": workloads,
    "ablation": ablation,
    "orchestrator": orchestrator,
    "robustness": robustness,
    "ilp": ilp,
    "scale": scale,
    "code": code,
}
