"""Every metric reaches Prometheus' page and an OTLP collector, from requests of a real server."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from observability import semconv
from tests.support.otlp_collector import metrics_file, running_collector
from tests.support.series import SERIES
from tests.support.server import Server, running_server

MODELS = Path(__file__).parents[2] / "models"
KEY = "sk-metrics-0123456789"
# On a device of this size `motion` fits nowhere, and `shapes` leaves no room beside it.
DEVICE_MEMORY = "35MiB"
# Which takes a dispatcher that preempts; tests/unit/test_span_metrics.py counts one.
NOT_DRIVEN = "tridentserve_stage_pauses_total"
INSTRUMENTS = {v for name, v in vars(semconv).items() if name.startswith("METRIC_")}
LABELS = {value for name, value in vars(semconv).items() if name.startswith("LABEL_")}


class Point(NamedTuple):
    """A value of an instrument; all that matters here is whose it is."""

    name: str
    labels: dict[str, str]


class Exported(NamedTuple):
    """What one server said of itself, in both ways."""

    page: list[Point]
    otlp: list[Point]
    spans: list[dict]


def drive(server: Server) -> None:
    """Have pictures drawn, one twice tried, one with fewer steps, and things refused."""
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=120) as client:
        draw = "/v1/images/generations"
        wish = {"model": "shapes", "prompt": "a red circle", "num_inference_steps": 3}
        client.post(draw, json=wish).raise_for_status()
        client.post(draw, json=wish).raise_for_status()  # its embeddings are kept
        long = {**wish, "prompt": "a star", "num_inference_steps": 150}
        late = client.post(draw, json={**long, "deadline_ms": 1})
        assert late.status_code == 503
        deadline_ms = int(late.headers["x-predicted-finish-ms"]) // 2
        fewer = {**long, "deadline_ms": deadline_ms, "min_inference_steps": 1}
        client.post(draw, json=fewer)  # in time or not: it was let in with fewer
        refused = client.post("/v1/videos", json={"model": "motion", "prompt": "x"}).json()["id"]
        while client.get(f"/v1/videos/{refused}").json()["status"] != "failed":
            time.sleep(0.1)
        began = len(server.spans())
        with ThreadPoolExecutor(1) as pool:
            drawing = pool.submit(client.post, draw, json=long)
            server.wait_for_span("stage encode", since=began)
            os.kill(server.worker_pids()[0], signal.SIGKILL)
            drawing.result().raise_for_status()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("metrics")
    file = folder / "spans.jsonl"
    with running_collector(file) as endpoint:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "TRIDENT_API_KEYS": f"acme:{KEY}"}
        flags = ["--devices", "1", "--device-memory", DEVICE_MEMORY]
        models = [MODELS / "shapes", MODELS / "motion"]
        with running_server(folder, models, env=env, flags=flags) as server:
            while server.get("/healthz")[0] != 200:  # ready it never is: `motion` fits nowhere
                time.sleep(0.1)
            drive(server)
            page = server.get("/metrics")[1].decode()
        lines = metrics_file(file).read_text().splitlines()
    otlp = [Point(line["metric"], line["labels"]) for line in map(json.loads, lines)]
    spans = [json.loads(line) for line in file.read_text().splitlines()]
    families = list(text_string_to_metric_families(page))
    return Exported(
        [Point(s.name, dict(s.labels)) for f in families for s in f.samples], otlp, spans
    )


def test_every_instrument_has_its_name_here() -> None:
    known = {re.sub(r"_(seconds_total|seconds|bytes_total|bytes|total)$", "", n) for n in SERIES}
    assert known == {name.replace(".", "_") for name in INSTRUMENTS}


@pytest.mark.parametrize("series", [name for name in SERIES if name != NOT_DRIVEN])
def test_the_page_has_it(exported: Exported, series: str) -> None:
    names = {point.name for point in exported.page}
    assert SERIES[series](series) <= names


@pytest.mark.parametrize("instrument", sorted(INSTRUMENTS - {semconv.METRIC_STAGE_PAUSES}))
def test_otlp_has_it(exported: Exported, instrument: str) -> None:
    assert instrument in {point.name for point in exported.otlp}


@pytest.mark.parametrize("way", ["page", "otlp"])
def test_labels_are_bounded(exported: Exported, way: str) -> None:
    ours = [p for p in getattr(exported, way) if p.name.startswith(("trident", "gen_ai", "http"))]
    assert {label for point in ours for label in point.labels} <= {*LABELS, "le"}
    values = {value for point in ours for value in point.labels.values()}
    assert not [value for value in values if re.search(r"[0-9a-f]{16}|red circle|sk-", value)]


def test_usage_is_told_by_tenant(exported: Exported) -> None:
    for points in (exported.page, exported.otlp):
        of_outputs = [p.labels for p in points if "tenant" in p.name and "outputs" in p.name]
        assert {(labels["model"], labels["tenant"]) for labels in of_outputs} == {
            ("shapes", "acme")
        }


def test_a_stage_that_is_tried_again_stays_in_the_trace_of_its_request(exported: Exported) -> None:
    diffuses = [span for span in exported.spans if span["name"] == "stage diffuse"]
    [failed] = [span for span in diffuses if semconv.ATTR_ERROR_TYPE in span["attributes"]]
    tries = [span for span in diffuses if span["trace"] == failed["trace"]]
    assert [span["attributes"][semconv.ATTR_ATTEMPT] for span in tries] == [1, 2]
    assert {span["parent"] for span in tries} == {failed["parent"]}
