"""Writes the Grafana dashboard and Prometheus' alert rules: `make dashboards`.

Metric names come from `observability.semconv`, so a renamed instrument changes both here; a test
generates them again and fails if what is committed differs.
"""

from __future__ import annotations

from pathlib import Path
from string import ascii_uppercase
from typing import Final, NamedTuple

import yaml
from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    LegendDisplayMode,
    LegendPlacement,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef

from observability import semconv

HERE: Final = Path(__file__).resolve().parent
DASHBOARD: Final = HERE / "dashboards" / "tridentserve.json"
RULES: Final = HERE.parent / "prometheus" / "rules.yaml"
_SOURCE: Final = DataSourceRef(type_val="prometheus", uid="prometheus")
_WINDOW: Final = "$__rate_interval"
_LEGEND: Final = (
    common.VizLegendOptions()
    .show_legend(show_legend=True)
    .display_mode(LegendDisplayMode.LIST)
    .placement(LegendPlacement.BOTTOM)
)
_PANEL_HEIGHT, _HALF, _QUARTER = 8, 12, 6

Query = tuple[str, str]  # PromQL and its legend


def name(metric: str, suffix: str) -> str:
    """Return how Prometheus calls an instrument: dots become underscores, then unit and kind."""
    return metric.replace(".", "_") + suffix


def _rate(metric: str, suffix: str, by: str, where: str = "") -> str:
    return f"sum by ({by}) (rate({name(metric, suffix)}{where}[{_WINDOW}]))"


def _quantile(metric: str, q: float, by: str) -> str:
    rate = f"rate({name(metric, '_seconds_bucket')}[{_WINDOW}])"
    return f"histogram_quantile({q}, sum by (le, {by}) ({rate}))"


def _on_time(window: str = _WINDOW) -> str:
    total = name(semconv.METRIC_SLO, "_total")
    return f'sum(rate({total}{{outcome="met"}}[{window}])) / sum(rate({total}[{window}]))'


STATS: Final[tuple[tuple[str, str, str], ...]] = (
    ("SLO attainment", _on_time("15m"), "percentunit"),
    ("Goodput", _rate(semconv.METRIC_SLO, "_total", "job", '{outcome="met"}'), "reqps"),
    ("Devices busy", f'sum({name(semconv.METRIC_DEVICES, "")}{{state="busy"}})', "short"),
    ("Jobs waiting", f'sum({name(semconv.METRIC_JOBS, "")}{{state="queued"}})', "short"),
)
PANELS: Final[tuple[tuple[str, str, tuple[Query, ...]], ...]] = (
    (
        "Requests finished, by deadline",
        "reqps",
        ((_rate(semconv.METRIC_SLO, "_total", "model, outcome"), "{{model}} {{outcome}}"),),
    ),
    (
        "Jobs let in, by what was predicted",
        "reqps",
        (
            (
                _rate(semconv.METRIC_SLO_PREDICTED, "_total", "model, outcome"),
                "{{model}} {{outcome}}",
            ),
        ),
    ),
    (
        "Requests rejected, by reason",
        "reqps",
        ((_rate(semconv.METRIC_REJECTIONS, "_total", "reason"), "{{reason}}"),),
    ),
    (
        "Jobs let in with fewer steps, to be on time",
        "reqps",
        ((_rate(semconv.METRIC_DEGRADED, "_total", "model"), "{{model}}"),),
    ),
    (
        "Outputs, by tenant",
        "ops",
        ((_rate(semconv.METRIC_TENANT_OUTPUTS, "_total", "tenant"), "{{tenant}}"),),
    ),
    (
        "Weight loads that a stage waited for, P95",
        "s",
        ((_quantile(semconv.METRIC_LOAD_DURATION, 0.95, "model, stage"), "{{model}} {{stage}}"),),
    ),
    (
        "Job duration, P50 and P95",
        "s",
        tuple(
            (_quantile(semconv.METRIC_JOB_DURATION, q, "model"), f"{{{{model}}}} P{round(100 * q)}")
            for q in (0.5, 0.95)
        ),
    ),
    (
        "Stage duration, P95",
        "s",
        (
            (
                _quantile(semconv.METRIC_STAGE_DURATION, 0.95, "model, stage, degree"),
                "{{model}} {{stage}} x{{degree}}",
            ),
        ),
    ),
    (
        "Stage queue time, P95",
        "s",
        ((_quantile(semconv.METRIC_STAGE_QUEUE, 0.95, "model, stage"), "{{model}} {{stage}}"),),
    ),
    (
        "Devices busy, by stage",
        "short",
        ((_rate(semconv.METRIC_TEAM_SECONDS, "_seconds_total", "stage"), "{{stage}}"),),
    ),
    (
        "Devices by state",
        "short",
        ((f"sum by (state) ({name(semconv.METRIC_DEVICES, '')})", "{{state}}"),),
    ),
    (
        "Launches that found or loaded their weights",
        "ops",
        (
            (
                _rate(semconv.METRIC_RESIDENCY, "_total", "model, stage, outcome"),
                "{{model}} {{stage}} {{outcome}}",
            ),
        ),
    ),
    (
        "Resident weights",
        "bytes",
        (
            (
                f"sum by (model, stage) ({name(semconv.METRIC_RESIDENT_BYTES, '_bytes')})",
                "{{model}} {{stage}}",
            ),
        ),
    ),
    (
        "Hand-off bytes",
        "Bps",
        (
            (
                _rate(semconv.METRIC_HANDOFF_BYTES, "_bytes_total", "model, stage"),
                "{{model}} {{stage}}",
            ),
        ),
    ),
    (
        "Solver time, P50 and P99",
        "s",
        tuple(
            (_quantile(metric, q, "job"), f"{who} P{round(100 * q)}")
            for who, metric in (
                ("dispatcher", semconv.METRIC_DECISION_DURATION),
                ("planner", semconv.METRIC_PLANNING_DURATION),
            )
            for q in (0.5, 0.99)
        ),
    ),
    (
        "Re-plans, pauses and failures",
        "ops",
        (
            (_rate(semconv.METRIC_REPLANS, "_total", "job"), "re-plans"),
            (_rate(semconv.METRIC_HELD, "_total", "outcome"), "held back: {{outcome}}"),
            (_rate(semconv.METRIC_STAGE_PAUSES, "_total", "stage"), "paused {{stage}}"),
            (_rate(semconv.METRIC_STAGE_RETRIES, "_total", "stage, outcome"), "{{outcome}}"),
        ),
    ),
    (
        "Answers by status",
        "reqps",
        (
            (
                _rate(semconv.METRIC_HTTP_DURATION, "_seconds_count", "route, status"),
                "{{route}} {{status}}",
            ),
        ),
    ),
)


class Alert(NamedTuple):
    """A rule: what is so when it fires, for how long, how bad that is, and what to tell a person."""

    name: str
    expr: str
    wait: str
    severity: str
    summary: str


_ANSWERS: Final = name(semconv.METRIC_HTTP_DURATION, "_seconds_count")
_QUEUE: Final = name(semconv.METRIC_STAGE_QUEUE, "_seconds_bucket")
_DECISION: Final = name(semconv.METRIC_DECISION_DURATION, "_seconds_bucket")
_RETRIES: Final = name(semconv.METRIC_STAGE_RETRIES, "_total")
_REJECTIONS: Final = name(semconv.METRIC_REJECTIONS, "_total")
_DEVICES: Final = name(semconv.METRIC_DEVICES, "")
_QUEUED: Final = f'sum({name(semconv.METRIC_JOBS, "")}{{state="queued"}})'

ALERTS: Final[tuple[Alert, ...]] = (
    Alert(
        "DeadlinesMissed",
        f"{_on_time('15m')} < 0.9",
        "10m",
        "warning",
        "Fewer than 90 % of the requests of the last 15 minutes met their deadline.",
    ),
    Alert(
        "DeviceLost",
        f'sum({_DEVICES}{{state="lost"}}) > 0',
        "2m",
        "critical",
        "A device has had no live worker for two minutes.",
    ),
    Alert(
        "QueueGrows",
        f"{_QUEUED} > 0 and deriv({_QUEUED}[15m:1m]) > 0",
        "15m",
        "warning",
        "More jobs come than the devices finish, for half an hour.",
    ),
    Alert(
        "TurnsAway",
        f'sum(rate({_REJECTIONS}{{reason="server_is_overloaded"}}[10m])) > 0',
        "10m",
        "warning",
        "The queue has been full for ten minutes: requests are turned away.",
    ),
    Alert(
        "StagesWait",
        f"histogram_quantile(0.95, sum by (le, stage) (rate({_QUEUE}[10m]))) > 60",
        "10m",
        "warning",
        "Stages {{ $labels.stage }} wait more than a minute for a team (P95).",
    ),
    Alert(
        "StagesFail",
        f"sum by (outcome) (rate({_RETRIES}[10m])) > 0.05",
        "10m",
        "warning",
        "Stage executions fail with {{ $labels.outcome }}.",
    ),
    Alert(
        "ServerErrors",
        f'sum(rate({_ANSWERS}{{status=~"5.."}}[10m])) / sum(rate({_ANSWERS}[10m])) > 0.02',
        "10m",
        "critical",
        "More than 2 % of the answers are 5xx.",
    ),
    Alert(
        "DecisionsSlow",
        f"histogram_quantile(0.99, sum by (le) (rate({_DECISION}[10m]))) > 0.5",
        "10m",
        "warning",
        "A dispatch decision takes more than half a second (P99).",
    ),
    Alert(
        "MonitorBlind",
        f"max({name(semconv.METRIC_MONITOR_BLIND, '')}) == 1 and "
        f'sum({_DEVICES}{{state="busy"}}) > 0',
        "5m",
        "critical",
        "Stages run, but the online monitor sees no span: the planner learns nothing.",
    ),
)


def build_dashboard() -> str:
    """Return the dashboard as the JSON that Grafana provisions."""
    board = (
        dashboard.Dashboard("TridentServe")
        .uid("tridentserve")
        .tags(["tridentserve"])
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
    )
    for number, (title, query, unit) in enumerate(STATS, 1):
        board.with_panel(
            stat.Panel()
            .id(number)
            .title(title)
            .datasource(_SOURCE)
            .unit(unit)
            .height(4)
            .span(_QUARTER)
            .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
            .with_target(_target("A", query, ""))
        )
    for number, (title, unit, queries) in enumerate(PANELS, 1 + len(STATS)):
        panel = (
            timeseries.Panel()
            .id(number)
            .title(title)
            .datasource(_SOURCE)
            .unit(unit)
            .min(0)
            .height(_PANEL_HEIGHT)
            .span(_HALF)
            .legend(_LEGEND)
            .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
        )
        for letter, (query, legend) in zip(ascii_uppercase, queries, strict=False):
            panel.with_target(_target(letter, query, legend))
        board.with_panel(panel)
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


def _target(letter: str, query: str, legend: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().ref_id(letter).expr(query).legend_format(legend)


def build_rules() -> str:
    """Return the alert rules as the YAML that Prometheus reads."""
    rules = [
        {
            "alert": f"Trident{alert.name}",
            "expr": alert.expr,
            "for": alert.wait,
            "labels": {"severity": alert.severity},
            "annotations": {"summary": alert.summary},
        }
        for alert in ALERTS
    ]
    head = "# Written by deploy/grafana/generate.py; `make dashboards` writes it anew.\n"
    groups = {"groups": [{"name": "tridentserve", "rules": rules}]}
    return head + yaml.safe_dump(groups, sort_keys=False, width=100)


def main() -> None:
    """Write both files."""
    DASHBOARD.write_text(build_dashboard(), encoding="utf-8")
    RULES.write_text(build_rules(), encoding="utf-8")


if __name__ == "__main__":
    main()
