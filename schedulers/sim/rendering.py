"""Summaries as text for a reader: figures, and tables of aligned columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from schedulers.policies import SwitchValue
from schedulers.sim.summary import STAGES, GroupSummary, Summary

_THREE_DIGITS = 100


def render(summary: Summary) -> str:
    """Return a summary for a reader; the first word says whether it is simulated."""
    lines = [_title(summary), _circumstances(summary), "", *_figures(summary)]
    lines += ["", *_group_table("class", summary.per_class)]
    if len(summary.per_tenant) > 1:
        lines += ["", *_group_table("tenant", summary.per_tenant)]
    if summary.reject_reasons:
        lines += ["", "rejected because"]
        reasons = sorted(summary.reject_reasons.items(), key=lambda item: -item[1])
        lines += [f"  {count:>5} x {reason}" for reason, count in reasons]
    return "\n".join(lines)


def seconds(value: float | None) -> str:
    """Return seconds with three significant digits, `-` for none."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= _THREE_DIGITS else f"{value:.3g}"


def _title(summary: Summary) -> str:
    return (
        f"{'SIMULATED' if summary.simulated else 'MEASURED'}: policy {summary.policy}, "
        f"{summary.gpus} {'GPUs' if summary.simulated else 'devices'} on {summary.nodes} nodes, "
        f"profile {summary.profile}, {', '.join(summary.models)}"
    )


def _circumstances(summary: Summary) -> str:
    parts = [
        f"workload {summary.workload}",
        f"rate x {summary.rate_scale:g}",
        f"deadlines {summary.slo_scale:g} x the best latency",
        f"seed {summary.seed}",
    ]
    if summary.noise:
        parts.append(f"noise {summary.noise:.0%}")
    if summary.stragglers:
        parts.append(f"stragglers {summary.stragglers:.1%}")
    if summary.failures:
        parts.append(f"failing {', '.join(summary.failures)}")
    if summary.dispatcher:
        parts.append(f"dispatcher {summary.dispatcher}")
    if summary.degrade:
        share = summary.min_steps_share
        parts.append("degrading" + ("" if share is None else f" to {share:.0%} of the steps"))
    parts += [f"{name} {_shown(value)}" for name, value in summary.policy_switches.items()]
    return "; ".join(parts)


def _shown(value: SwitchValue) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def _figures(summary: Summary) -> list[str]:
    use = summary.gpu_utilisation
    shares = ", ".join(f"{part} {use[part]:.1%}" for part in (*STAGES, "load"))
    rows = {
        "requests": f"{summary.requests}: {summary.finished} finished, {summary.rejected} rejected",
        "on time": f"{summary.slo_attainment:.2%} of all requests" + _with_fewer_steps(summary),
        "latency": f"mean {seconds(summary.mean_s)} s, P50 {seconds(summary.p50_s)} s, "
        f"P95 {seconds(summary.p95_s)} s, P99 {seconds(summary.p99_s)} s",
        "goodput": f"{summary.goodput_rps:.4g} requests on time per second",
        "GPU use": f"{use['total']:.1%} ({shares})",
        "weights": f"{summary.loads} loads, {summary.evictions} evictions, "
        f"{summary.switches} switches of placement",
        "runs": f"{summary.preemptions} preempted, {summary.resizes} resized, "
        f"{summary.failed_runs} failed; {summary.devices_lost} GPUs lost",
        "decisions": f"{summary.decisions}, P50 {summary.decision_ms_p50:.3g} ms, "
        f"P99 {summary.decision_ms_p99:.3g} ms",
        "simulated": f"{summary.simulated_s:.0f} s in {summary.wall_s:.1f} s",
    }
    if not summary.simulated:
        del rows["simulated"]
        rows["took"] = f"{summary.wall_s:.0f} s"
    return [f"{name:<10} {text}" for name, text in rows.items()]


def _with_fewer_steps(summary: Summary) -> str:
    if not summary.degraded:
        return ""
    return (
        f"; {summary.degraded_attainment:.2%} more with fewer steps "
        f"({summary.degraded} degraded, {summary.degraded_on_time} of them on time)"
    )


def _group_table(title: str, groups: Mapping[str, GroupSummary]) -> list[str]:
    rows = [
        (name, f"{g.requests}", f"{g.slo_attainment:.1%}", seconds(g.mean_s), seconds(g.p95_s))
        for name, g in groups.items()
    ]
    return table((title, "requests", "on time", "mean s", "P95 s"), rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return aligned lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for cells in (header, *rows):
        first, *others = (f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))
        lines.append("  ".join([f"{first.strip():<{widths[0]}}", *others]))
    return lines
