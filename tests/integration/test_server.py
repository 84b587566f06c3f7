"""A live server and the unmodified OpenAI SDK: pictures, errors, concurrency, kill -9, restart."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import av
import httpx
import openai
import pytest
from openai import OpenAI
from PIL import Image

from tests.support.server import Server, running_server

KEYS = {
    "TRIDENT_API_KEYS": "acme:sk-acme-0123456789,globex:sk-globex-0123456789",
    "TRIDENT_EMBEDDING_CACHE": "0",  # every request goes through its three stages
}


@pytest.fixture(scope="module")
def server(
    model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    data_dir = tmp_path_factory.mktemp("server")
    folders = [model_folder("sd"), model_folder("flux"), model_folder("animatediff")]
    with running_server(data_dir, folders, env=KEYS) as running:
        running.wait_ready()
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="sk-acme-0123456789", max_retries=0) as client:
        yield client


def picture(content: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_a_prompt_becomes_a_picture_of_the_exact_size(client: OpenAI) -> None:
    answer = client.images.generate(model="sd", prompt="a red circle", size="96x64")  # type: ignore[arg-type]
    image = picture(answer.data[0].b64_json)
    assert (image.size, image.format) == ((96, 64), "PNG")
    assert (answer.size, answer.output_format) == ("96x64", "png")
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_the_same_seed_gives_the_same_bytes_and_another_prompt_others(client: OpenAI) -> None:
    def draw(prompt: str, seed: int) -> str:
        answer = client.images.generate(model="sd", prompt=prompt, extra_body={"seed": seed})
        return answer.data[0].b64_json

    first = draw("a red circle", 5)
    assert draw("a red circle", 5) == first
    assert draw("a blue square", 5) != first
    assert draw("a red circle", 6) != first


def test_the_first_of_several_equals_the_single_one(client: OpenAI) -> None:
    several = client.images.generate(model="flux", prompt="a star", n=3, extra_body={"seed": 9})
    single = client.images.generate(model="flux", prompt="a star", extra_body={"seed": 9})
    assert len({item.b64_json for item in several.data}) == 3
    assert several.data[0].b64_json == single.data[0].b64_json


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp"])
def test_a_url_answer_serves_the_file_without_a_key(client: OpenAI, file_format: str) -> None:
    answer = client.images.generate(
        model="sd", prompt="a star", response_format="url", output_format=file_format
    )
    file = httpx.get(answer.data[0].url)
    assert Image.open(io.BytesIO(file.content)).format == file_format.upper()
    assert file.headers["content-type"] == f"image/{file_format}"


@pytest.mark.filterwarnings("ignore:The Sora API is scheduled")
def test_a_prompt_becomes_a_video_by_polling(client: OpenAI) -> None:
    video = client.videos.create_and_poll(
        model="animatediff", prompt="a red circle moving right", extra_body={"seed": 3}
    )
    assert (video.status, video.progress, video.size) == ("completed", 100, "64x64")
    content = client.videos.download_content(video.id).read()
    with av.open(io.BytesIO(content)) as file:
        frames = [frame.to_ndarray(format="rgb24").shape for frame in file.decode(video=0)]
    assert frames == [(64, 64, 3)] * 9
    client.videos.delete(video.id)
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)


def test_a_prompt_that_is_too_long_for_the_encoder_is_not_written_to_the_log(
    client: OpenAI, capfd: pytest.CaptureFixture[str]
) -> None:
    client.images.generate(model="sd", prompt="zanzibar " * 300)
    out, err = capfd.readouterr()
    assert "zanzibar" not in out + err


def test_sixteen_requests_at_once_all_succeed(client: OpenAI) -> None:
    def draw(number: int) -> str:
        model = ("sd", "flux")[number % 2]
        answer = client.images.generate(
            model=model, prompt=f"a {number} star", extra_body={"seed": number}
        )
        return answer.data[0].b64_json

    with ThreadPoolExecutor(16) as pool:
        drawn = list(pool.map(draw, range(16)))
    assert len(set(drawn)) == 16


def test_the_models_are_listed_and_found(client: OpenAI) -> None:
    assert sorted(model.id for model in client.models.list()) == ["animatediff", "flux", "sd"]
    assert client.models.retrieve("sd").object == "model"


@pytest.mark.parametrize(
    ("arguments", "error", "code", "param"),
    [
        ({"model": "nope"}, openai.NotFoundError, "model_not_found", "model"),
        ({"size": "banana"}, openai.BadRequestError, "invalid_value", "size"),
        ({"size": "65x64"}, openai.BadRequestError, "invalid_value", "size"),
        ({"size": "100000x100000"}, openai.BadRequestError, "invalid_value", "size"),
        ({"n": 0}, openai.BadRequestError, "integer_below_min_value", "n"),
        ({"n": 11}, openai.BadRequestError, "integer_above_max_value", "n"),
        ({"n": "two"}, openai.BadRequestError, "invalid_type", "n"),
        ({"prompt": ""}, openai.BadRequestError, "string_below_min_length", "prompt"),
        ({"prompt": None}, openai.BadRequestError, "missing_required_parameter", "prompt"),
        ({"output_format": "bmp"}, openai.BadRequestError, "invalid_value", "output_format"),
        ({"extra_body": {"seed": "x"}}, openai.BadRequestError, "invalid_type", "seed"),
    ],
)
def test_a_bad_request_is_an_openai_error_with_code_and_param(
    client: OpenAI, arguments: dict, error: type[openai.APIStatusError], code: str, param: str
) -> None:
    with pytest.raises(error) as caught:
        client.images.generate(**({"model": "sd", "prompt": "a star"} | arguments))
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


def test_a_wrong_key_is_refused_before_the_body_is_read(server: Server) -> None:
    with (
        OpenAI(base_url=f"{server.url}/v1", api_key="sk-wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        stranger.images.generate(model="nope", prompt="")
    assert caught.value.code == "invalid_api_key"
    assert "sk-wrong" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/images/generations", b"{not json", 400),
        ("POST", "/v1/images/generations", b"[]", 400),
        ("POST", "/v1/images/generations", b'{"prompt": "\xff"}', 400),
        ("POST", "/v1/nowhere", b"{}", 404),
        ("GET", "/v1/images/generations", None, 405),
    ],
)
def test_malformed_calls_get_the_error_object(
    server: Server, method: str, path: str, body: bytes | None, status: int
) -> None:
    headers = {"Authorization": "Bearer sk-acme-0123456789", "Content-Type": "application/json"}
    answer = httpx.request(method, server.url + path, content=body, headers=headers)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]


def test_a_worker_killed_in_mid_request_costs_time_and_nothing_else(
    server: Server, client: OpenAI
) -> None:
    def draw() -> str:
        answer = client.images.generate(
            model="sd", prompt="a star", extra_body={"seed": 3, "num_inference_steps": 150}
        )
        return answer.data[0].b64_json

    undisturbed = draw()
    with ThreadPoolExecutor(1) as pool:
        began = len(server.spans())
        future = pool.submit(draw)
        server.wait_for_span("stage encode", since=began)
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGKILL)
        assert future.result(60) == undisturbed
    server.wait_ready()
    assert any(s["attributes"].get("tridentserve.attempt") == 2 for s in server.spans()[began:])


def test_one_trace_holds_the_server_the_job_and_the_three_stages(
    server: Server, client: OpenAI
) -> None:
    began = len(server.spans())
    client.images.generate(model="sd", prompt="a zebra")
    server.wait_for_span("POST /v1/images/generations", since=began)
    spans = {s["name"]: s for s in server.spans()[began:]}
    assert list(spans) == [
        "stage encode",
        "stage diffuse",
        "stage decode",
        "generate_content sd",
        "POST /v1/images/generations",
    ]
    job = spans["generate_content sd"]
    assert len({s["context"]["trace_id"] for s in spans.values()}) == 1
    assert job["parent_id"] == spans["POST /v1/images/generations"]["context"]["span_id"]
    for kind in ("encode", "diffuse", "decode"):
        stage = spans[f"stage {kind}"]
        assert stage["parent_id"] == job["context"]["span_id"]
        names = {"team.devices", "queue_wait_s", "load_s", "run_s", "attempt", "plan.id"}
        assert names <= {name.removeprefix("tridentserve.") for name in stage["attributes"]}
    assert "zebra" not in json.dumps(list(spans.values()))


def test_a_killed_server_leaves_no_process_and_its_job_is_finished_after_a_restart(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    def post(url: str) -> None:
        body = {"model": "sd", "prompt": "x", "num_inference_steps": 200, "n": 4}
        answer = httpx.post(f"{url}/v1/images/generations", json=body, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_is_overloaded")

    folders, hasty = [model_folder("sd")], {"TRIDENT_DRAIN_S": "0.1"}  # or it would finish it first
    with running_server(tmp_path, folders, env=hasty, stop_with=signal.SIGKILL) as first:
        first.wait_ready()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(post, first.url)
            first.wait_for_span("stage encode")
            os.kill(first.process.pid, signal.SIGKILL)
            waiting.result(60)
        first.wait_gone()
    with running_server(tmp_path, folders) as second:
        second.wait_ready()
        second.wait_for_span("generate_content sd")


def test_a_volley_of_stop_signals_stops_the_server_once_and_for_all(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    with running_server(tmp_path, [model_folder("sd")]) as volley:
        volley.wait_ready()
        children = Path(f"/proc/{volley.process.pid}/task/{volley.process.pid}/children")
        processes = [volley.process.pid, *map(int, children.read_text().split())]
        for number in (signal.SIGINT, signal.SIGTERM) * 5:
            for pid in processes:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        assert volley.process.wait(90) == 0
        volley.wait_gone()
