"""One request of the SDK, exported to a collector process, reads as one tree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from observability import semconv
from tests.support.otlp_collector import running_collector
from tests.support.server import running_server

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TOLD = {
    semconv.ATTR_JOB_ID,
    semconv.ATTR_SHAPE,
    semconv.ATTR_STEPS,
    semconv.ATTR_QUEUE_WAIT_S,
    semconv.ATTR_RESIDENCY,
    semconv.ATTR_LOAD_S,
    semconv.ATTR_HANDOFF_S,
    semconv.ATTR_HANDOFF_BYTES,
    semconv.ATTR_PLAN_ID,
    semconv.ATTR_PLACEMENT,
}
SHAPES = Path(__file__).parents[2] / "models" / "shapes"


@pytest.fixture(scope="module")
def spans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict]]:
    """What the collector holds after one picture of many steps and the server's end."""
    folder = tmp_path_factory.mktemp("collected")
    file = folder / "spans.jsonl"
    with running_collector(file) as endpoint:
        with running_server(folder, [SHAPES], env={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}) as s:
            s.wait_ready()
            with OpenAI(base_url=f"{s.url}/v1", api_key="none", max_retries=0) as client:
                client.images.generate(
                    model="shapes",
                    prompt="a red circle",
                    extra_headers={"traceparent": f"00-{TRACE}-{PARENT}-01"},
                    extra_body={"num_inference_steps": 150, "seed": 1},
                )
        found = [json.loads(line) for line in file.read_text().splitlines()]
        yield [span for span in found if span["trace"] == TRACE]


def named(spans: list[dict], name: str) -> dict:
    [found] = [span for span in spans if span["name"] == name]
    return found


def test_the_trace_of_a_request_is_one_tree(spans: list[dict]) -> None:
    server = named(spans, "POST /v1/images/generations")
    job = named(spans, "generate_content shapes")
    assert server["parent"] == PARENT
    assert job["parent"] == server["id"]
    stages = [span for span in spans if span["name"].startswith("stage ")]
    assert sorted(span["name"] for span in stages) == [
        "stage decode",
        "stage diffuse",
        "stage encode",
    ]
    assert {span["parent"] for span in stages} == {job["id"]}
    assert len({span["id"] for span in spans}) == len(spans)


def test_a_stage_says_who_ran_it_what_was_measured_and_what_was_decided(spans: list[dict]) -> None:
    for kind in ("encode", "diffuse", "decode"):
        found = named(spans, f"stage {kind}")["attributes"]
        assert found.keys() >= TOLD
        assert (found[semconv.ATTR_MODEL], found[semconv.ATTR_STAGE]) == ("shapes", kind)
        assert len(found[semconv.ATTR_TEAM]) == found[semconv.ATTR_DEGREE] == 1
        assert found[semconv.ATTR_ATTEMPT] == found[semconv.ATTR_BATCH] == 1
        assert found[semconv.ATTR_RUN_S] > 0
    assert named(spans, "stage diffuse")["attributes"][semconv.ATTR_STEPS_DONE] == 150


def test_no_span_is_a_denoise_step(spans: list[dict]) -> None:
    assert len(spans) < 20


def test_the_stages_of_a_long_request_add_up_to_its_job(spans: list[dict]) -> None:
    def took_ns(span: dict) -> int:
        return span["end_ns"] - span["start_ns"]

    job = took_ns(named(spans, "generate_content shapes"))
    stages = sum(took_ns(span) for span in spans if span["name"].startswith("stage "))
    assert stages == pytest.approx(job, rel=0.02)
