"""What deploy/ ships is what its generator writes, and asks for metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from deploy.grafana.generate import DASHBOARD, RULES, build_dashboard, build_rules
from observability import semconv

DEPLOY = Path(__file__).parents[2] / "deploy"
SUFFIXES = ("", "_bytes", "_total", "_seconds_total", "_bytes_total")
PARTS = ("_seconds_bucket", "_seconds_count", "_seconds_sum")


def instruments() -> set[str]:
    """Return every series name that our instruments can have."""
    names = {
        value.replace(".", "_")
        for name, value in vars(semconv).items()
        if name.startswith("METRIC_")
    }
    return {name + suffix for name in names for suffix in (*SUFFIXES, *PARTS)}


def asked_for(queries: str) -> set[str]:
    return set(re.findall(r"\b(?:tridentserve|http_server|gen_ai)_[a-z_]+", queries))


def test_the_committed_dashboard_is_the_generated_one() -> None:
    assert DASHBOARD.read_text(encoding="utf-8") == build_dashboard()


def test_the_committed_rules_are_the_generated_ones() -> None:
    assert RULES.read_text(encoding="utf-8") == build_rules()


def test_dashboard_and_rules_ask_only_for_metrics_that_exist() -> None:
    panels = json.loads(build_dashboard())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    rules = [rule["expr"] for rule in yaml.safe_load(build_rules())["groups"][0]["rules"]]
    asked = asked_for(" ".join([*queries, *rules]))
    assert len(asked) > 10
    assert asked - instruments() == set()


def test_every_panel_has_a_place_a_title_and_a_query() -> None:
    panels = json.loads(build_dashboard())["panels"]
    for panel in panels:
        assert panel["title"]
        assert panel["targets"]
        assert {"x", "y", "w", "h"} <= panel["gridPos"].keys()
    assert len({panel["title"] for panel in panels}) == len(panels)


def test_compose_mounts_files_that_exist() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    mounts = [mount for service in services.values() for mount in service.get("volumes", [])]
    ours = [mount.split(":")[0] for mount in mounts if mount.startswith("./")]
    assert ours
    assert [mount for mount in ours if not (DEPLOY / mount).exists()] == []


def test_ports_are_bound_to_this_machine() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
