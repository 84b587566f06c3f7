"""Several summaries of the same workload side by side."""

from __future__ import annotations

from collections.abc import Sequence

from schedulers.sim.rendering import seconds, table
from schedulers.sim.summary import Summary

_HEADER = (
    "policy",
    "on time",
    "mean s",
    "P50 s",
    "P95 s",
    "P99 s",
    "goodput/s",
    "GPU use",
    "rejected",
    "preempted",
    "resized",
    "loads",
    "P99 ms/decision",
)
_DEGRADING = "on time, fewer steps"


def compare(summaries: Sequence[Summary]) -> str:
    """Return a table with a row per policy, and under it the attainment of every class."""
    one = summaries[0]
    title = (
        f"SIMULATED: {one.gpus} GPUs on {one.nodes} nodes, profile {one.profile}, "
        f"{', '.join(one.models)}; workload {one.workload}, {one.requests} requests, "
        f"rate x {one.rate_scale:g}, seed {one.seed}"
    )
    header: tuple[str, ...] = _HEADER
    rows: list[tuple[str, ...]] = [_row(summary) for summary in summaries]
    if any(summary.degrade for summary in summaries):
        header = (*header, _DEGRADING)
        rows = [(*row, _fewer(run)) for row, run in zip(rows, summaries, strict=True)]
    classes = dict.fromkeys(name for summary in summaries for name in summary.per_class)
    by_class = ("on time, by class", *(summary.policy for summary in summaries))
    shares = [(name, *(_share(summary, name) for summary in summaries)) for name in classes]
    return "\n".join([title, "", *table(header, rows), "", *table(by_class, shares)])


def _row(summary: Summary) -> tuple[str, ...]:
    return (
        summary.policy,
        f"{summary.slo_attainment:.2%}",
        seconds(summary.mean_s),
        seconds(summary.p50_s),
        seconds(summary.p95_s),
        seconds(summary.p99_s),
        f"{summary.goodput_rps:.4g}",
        f"{summary.gpu_utilisation['total']:.1%}",
        f"{summary.rejected}",
        f"{summary.preemptions}",
        f"{summary.resizes}",
        f"{summary.loads}",
        f"{summary.decision_ms_p99:.3g}",
    )


def _fewer(summary: Summary) -> str:
    return f"{summary.degraded_attainment:.2%}"


def _share(summary: Summary, name: str) -> str:
    group = summary.per_class.get(name)
    return "-" if group is None else f"{group.slo_attainment:.1%}"
