"""What deploy/ ships is what its generator writes, and asks for metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from deploy.grafana.generate import DASHBOARD, RULES, build_dashboard, build_rules
from gateway.app import create_app
from gateway.settings import Settings
from observability import semconv
from tests.support.fake_engine import FakeEngine

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
