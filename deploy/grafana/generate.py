"""Writes the Grafana dashboard and Prometheus' alert rules: `make dashboards`.

Metric names come from `observability.semconv`, so a renamed instrument changes both here; a test
generates them again and fails if what is committed differs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml
from grafana_foundation_sdk.builders import dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef

from observability import semconv

HERE: Final = Path(__file__).resolve().parent
DASHBOARD: Final = HERE / "dashboards" / "tridentserve.json"
RULES: Final = HERE.parent / "prometheus" / "rules.yaml"
_SOURCE: Final = DataSourceRef(type_val="prometheus", uid="prometheus")
_WINDOW: Final = "$__rate_interval"
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
        "Decision time, P50 and P99",
        "s",
        tuple(
            (_quantile(semconv.METRIC_DECISION_DURATION, q, "job"), f"P{round(100 * q)}")
            for q in (0.5, 0.99)
        ),
    ),
    (
        "Re-plans, pauses and failures",
        "ops",
        (
            (_rate(semconv.METRIC_REPLANS, "_total", "job"), "re-plans"),
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
    for title, query, unit in STATS:
        board.with_panel(
            stat.Panel()
            .title(title)
            .datasource(_SOURCE)
            .unit(unit)
            .height(4)
            .span(_QUARTER)
            .with_target(_target(query, ""))
        )
    for title, unit, queries in PANELS:
        panel = (
            timeseries.Panel()
            .title(title)
            .datasource(_SOURCE)
            .unit(unit)
            .min(0)
            .height(_PANEL_HEIGHT)
            .span(_HALF)
        )
        for query, legend in queries:
            panel.with_target(_target(query, legend))
        board.with_panel(panel)
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


def _target(query: str, legend: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(query).legend_format(legend)


def _alert(alert: str, expr: str, wait: str, severity: str, summary: str) -> dict[str, Any]:
    return {
        "alert": alert,
        "expr": expr,
        "for": wait,
        "labels": {"severity": severity},
        "annotations": {"summary": summary},
    }


def build_rules() -> str:
    """Return the alert rules as the YAML that Prometheus reads."""
    answers = name(semconv.METRIC_HTTP_DURATION, "_seconds_count")
    queue = name(semconv.METRIC_STAGE_QUEUE, "_seconds_bucket")
    decision = name(semconv.METRIC_DECISION_DURATION, "_seconds_bucket")
    devices, jobs = name(semconv.METRIC_DEVICES, ""), name(semconv.METRIC_JOBS, "")
    retries = name(semconv.METRIC_STAGE_RETRIES, "_total")
    rules = [
        _alert(
            "TridentDeadlinesMissed",
            f"{_on_time('15m')} < 0.9",
            "10m",
            "warning",
            "Fewer than 90 % of the requests of the last 15 minutes met their deadline.",
        ),
        _alert(
            "TridentDeviceLost",
            f'sum({devices}{{state="lost"}}) > 0',
            "2m",
            "critical",
            "A device has had no live worker for two minutes.",
        ),
        _alert(
            "TridentQueueGrows",
            f'sum({jobs}{{state="queued"}}) > 0 and deriv(sum({jobs}{{state="queued"}})[15m:1m]) > 0',
            "15m",
            "warning",
            "More jobs come than the devices finish, for half an hour.",
        ),
        _alert(
            "TridentStagesWait",
            f"histogram_quantile(0.95, sum by (le, stage) (rate({queue}[10m]))) > 60",
            "10m",
            "warning",
            "Stages {{ $labels.stage }} wait more than a minute for a team (P95).",
        ),
        _alert(
            "TridentStagesFail",
            f"sum by (outcome) (rate({retries}[10m])) > 0.05",
            "10m",
            "warning",
            "Stage executions fail with {{ $labels.outcome }}.",
        ),
        _alert(
            "TridentServerErrors",
            f'sum(rate({answers}{{status=~"5.."}}[10m])) / sum(rate({answers}[10m])) > 0.02',
            "10m",
            "critical",
            "More than 2 % of the answers are 5xx.",
        ),
        _alert(
            "TridentDecisionsSlow",
            f"histogram_quantile(0.99, sum by (le) (rate({decision}[10m]))) > 0.5",
            "10m",
            "warning",
            "A dispatch decision takes more than half a second (P99).",
        ),
        _alert(
            "TridentMonitorBlind",
            f"max({name(semconv.METRIC_MONITOR_BLIND, '')}) == 1 and "
            f'sum({devices}{{state="busy"}}) > 0',
            "5m",
            "critical",
            "Stages run, but the online monitor sees no span: the planner learns nothing.",
        ),
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
