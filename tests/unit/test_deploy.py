"""What deploy/ ships is what its generator writes, and asks for metrics that exist."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema_rs
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.generate import ALERTS, DASHBOARD, RULES, build_dashboard, build_rules
from gateway.app import create_app
from gateway.settings import Settings
from tests.support.fake_engine import FakeEngine
from tests.support.grafana_dashboard import DASHBOARD as DASHBOARD_SCHEMA
from tests.support.series import SERIES, all_series

DEPLOY = Path(__file__).parents[2] / "deploy"
# For a person who looks closer: what there is no panel for.
NOT_SHOWN = {
    "tridentserve_embeddings_requests_total",
    "tridentserve_handoff_duration_seconds",
    "tridentserve_job_queue_time_seconds",
    "tridentserve_monitor_dropped",
    "tridentserve_stage_step_duration_seconds",
}
# Their images have no shell and no client to ask with: nothing in them can run a check.
BARE = {"collector", "tempo"}


def asked_for(queries: str) -> set[str]:
    return set(re.findall(r"\b(?:tridentserve|http_server|gen_ai)_[a-z_]+", queries))


def test_the_committed_dashboard_is_the_generated_one() -> None:
    assert DASHBOARD.read_text(encoding="utf-8") == build_dashboard()


def test_the_committed_rules_are_the_generated_ones() -> None:
    assert RULES.read_text(encoding="utf-8") == build_rules()


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(build_dashboard())["panels"]
    return found


def queries() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def test_the_dashboard_is_as_grafana_wants_it() -> None:
    found = jsonschema_rs.validator_for(DASHBOARD_SCHEMA).iter_errors(json.loads(build_dashboard()))
    assert [f"{error.instance_path}: {error.message}" for error in found] == []


def test_the_dashboard_is_read_back_by_grafanas_own_types() -> None:
    board = json.loads(build_dashboard())
    assert json.loads(JSONEncoder().encode(Dashboard.from_json(board))) == board


@pytest.mark.parametrize("expr", [*queries(), *(rule.expr for rule in ALERTS)])
def test_every_query_and_alert_asks_for_series_that_a_server_has(expr: str) -> None:
    asked = asked_for(expr)
    assert asked
    assert asked - all_series() == set()


def test_every_series_is_on_the_dashboard() -> None:
    shown = asked_for(" ".join([*queries(), *(rule.expr for rule in ALERTS)]))
    assert {name for name, kind in SERIES.items() if not shown & kind(name)} == NOT_SHOWN


def test_legends_name_labels_that_their_query_keeps() -> None:
    for target in (target for panel in panels() for target in panel["targets"]):
        kept = {
            label
            for by in re.findall(r"by \(([^)]*)\)", target["expr"])
            for label in by.split(", ")
        }
        assert set(re.findall(r"{{(\w+)}}", target.get("legendFormat", ""))) <= kept


def test_panels_have_ids_titles_and_places_of_their_own() -> None:
    found = panels()
    for part in ("id", "title"):
        assert len({panel[part] for panel in found}) == len(found)
    places = [
        {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        for at in (panel["gridPos"] for panel in found)
    ]
    assert sum(map(len, places)) == len(set().union(*places))


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


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


SERVICES = read("compose.yaml")["services"]
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")


def listens(service: str) -> set[int]:
    """Return the ports that a service's own configuration opens inside its container."""
    otlp = {4318}
    return {
        "trident": {int(port) for port in re.findall(r"^EXPOSE (\d+)", DOCKERFILE, re.MULTILINE)},
        "collector": otlp_ports(read("otel-collector.yaml")["receivers"]),
        "tempo": otlp_ports(read("tempo.yaml")["distributor"]["receivers"])
        | {read("tempo.yaml")["server"]["http_listen_port"]},
        "prometheus": {9090},  # their images' own
        "grafana": {3000},
    }.get(service, otlp)


def otlp_ports(receivers: dict[str, Any]) -> set[int]:
    return {urlsplit(f"//{receivers['otlp']['protocols']['http']['endpoint']}").port or 0}


def addresses() -> list[str]:
    """Return every address of another service that some configuration names."""
    sources = read("grafana/provisioning/datasources/sources.yaml")["datasources"]
    [scrape] = read("prometheus/prometheus.yaml")["scrape_configs"]
    environment = SERVICES["trident"]["environment"]
    return [
        environment["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"],
        *(exporter["endpoint"] for exporter in read("otel-collector.yaml")["exporters"].values()),
        *(source["url"] for source in sources),
        *(
            f"http://{target}"
            for config in scrape["static_configs"]
            for target in config["targets"]
        ),
    ]


@pytest.mark.parametrize("address", addresses())
def test_every_address_is_a_service_that_listens_there(address: str) -> None:
    parts = urlsplit(address)
    assert parts.hostname in SERVICES
    assert parts.port in listens(parts.hostname)


def test_published_ports_are_those_that_their_services_listen_on() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            assert int(port.rpartition(":")[2]) in listens(name)


def test_a_container_reads_the_files_that_are_mounted_into_it() -> None:
    for name, flag in (
        ("collector", "--config="),
        ("tempo", "-config.file="),
        ("prometheus", "--config.file="),
    ):
        [read_from] = [word.removeprefix(flag) for word in SERVICES[name]["command"]]
        targets = [mount.split(":")[1] for mount in SERVICES[name]["volumes"]]
        assert any(Path(read_from).is_relative_to(target) for target in targets)


def test_every_volume_is_declared() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    named = {mount.split(":")[0] for mount in mounts if not mount.startswith(".")}
    assert named == set(read("compose.yaml")["volumes"])


def test_grafana_reads_dashboards_from_where_they_are_mounted_and_finds_its_sources() -> None:
    targets = [mount.split(":")[1] for mount in SERVICES["grafana"]["volumes"]]
    [provider] = read("grafana/provisioning/dashboards/boards.yaml")["providers"]
    assert provider["options"]["path"] in targets
    known = {s["uid"] for s in read("grafana/provisioning/datasources/sources.yaml")["datasources"]}
    used = {panel["datasource"]["uid"] for panel in json.loads(build_dashboard())["panels"]}
    assert used <= known


def test_collector_pipelines_are_made_of_parts_that_are_configured() -> None:
    collector = read("otel-collector.yaml")
    for pipeline in collector["service"]["pipelines"].values():
        for part in ("receivers", "processors", "exporters"):
            assert set(pipeline[part]) <= set(collector[part])


def test_the_image_installs_an_extra_that_exists_and_runs_a_command_that_exists() -> None:
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    [extra] = re.findall(r"'\.\[(\w+)\]'", DOCKERFILE)
    assert extra in project["optional-dependencies"]
    [command] = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert json.loads(command)[0] in project["scripts"]


def test_the_images_environment_is_understood_by_the_server() -> None:
    [line] = re.findall(r"^ENV (.*)$", DOCKERFILE, re.MULTILINE)
    environment = dict(word.split("=", 1) for word in line.split())
    compose = SERVICES["trident"]["environment"]
    ours = {name for name in (*environment, *compose) if name.startswith("TRIDENT_")}
    documented = (DEPLOY.parent / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert {name for name in ours if f"`{name}`" not in documented} == set()
    settings = Settings.from_env({**environment, "TRIDENT_API_KEYS": "me:sk-choose-one"})
    assert settings.port in listens("trident")


def test_what_is_probed_and_scraped_is_a_route(tmp_path: Path) -> None:
    app = create_app(Settings(models=(), data_dir=tmp_path), engine=FakeEngine())
    paths = {route.path for route in app.routes}
    [probed] = re.findall(r"http://127\.0\.0\.1:8000(/\w+)", DOCKERFILE)
    assert {probed, "/metrics"} <= paths


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus' promtool is not here")
def test_promtool_accepts_the_rules() -> None:
    command = ["promtool", "check", "config", DEPLOY / "prometheus" / "prometheus.yaml"]
    checked = subprocess.run(command, capture_output=True, check=False, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus' promtool is not here")
def test_promtool_reads_every_query_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel_{number}", "expr": expr.replace("$__rate_interval", "5m")}
        for number, expr in enumerate(queries())
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    command = ["promtool", "check", "rules", file]
    checked = subprocess.run(command, capture_output=True, check=False, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


KEYS = {"build", "image", "command", "environment", "ports", "volumes", "shm_size", "healthcheck"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_checked_and_started_again(name: str) -> None:
    service = SERVICES[name]
    assert set(service) <= {*KEYS, "depends_on", "restart"}
    assert ("build" in service) != ("image" in service)
    assert service["restart"] == "unless-stopped"
    if "image" in service:
        tag = service["image"].rpartition(":")[2]
        assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag)
        assert ("healthcheck" in service) != (name in BARE)
    else:
        assert "HEALTHCHECK" in DOCKERFILE
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_who_is_waited_for_until_healthy_is_checked() -> None:
    for service in SERVICES.values():
        for other, how in service.get("depends_on", {}).items():
            healthy = how["condition"] == "service_healthy"
            assert healthy == (other not in BARE)
            assert healthy or how["condition"] == "service_started"


def test_health_checks_ask_a_port_that_is_listened_on() -> None:
    for name, service in SERVICES.items():
        if check := service.get("healthcheck"):
            [url] = [word for word in check["test"] if word.startswith("http://127.0.0.1:")]
            assert check["test"][0] == "CMD"
            assert urlsplit(url).port in listens(name)


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not here")
def test_docker_compose_reads_it() -> None:
    command = ["docker-compose", "--file", DEPLOY / "compose.yaml", "config", "--quiet"]
    environment = {**os.environ, "TRIDENT_API_KEYS": "me:sk-choose-one"}
    checked = subprocess.run(command, capture_output=True, check=False, text=True, env=environment)
    assert checked.returncode == 0, checked.stdout + checked.stderr
