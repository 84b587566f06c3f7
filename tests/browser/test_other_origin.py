"""A front end on another origin: preflights, a picture that streams in, a video that can be sought."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.support.server import Server, running_server

MODELS = Path(__file__).parents[2] / "models"
KEY = "sk-other-origin-0123"
# What a front end would have: fetch, EventSource's framing by hand (it needs a POST), a <video>.
FRONT_END = """<!doctype html><meta charset="utf-8"><img id="picture"><video id="clip"></video>
<script>
const call = (url, path, body) => fetch(url + path, {
  method: "POST",
  headers: {"content-type": "application/json", authorization: "Bearer " + KEY, "x-stainless-os": "Web"},
  body: JSON.stringify(body),
});
async function stream(url, body) {
  const answer = await call(url, "/v1/images/generations", {...body, stream: true});
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  const seen = [];
  let text = "";
  for (let part; !(part = await reader.read()).done;) {
    text += part.value;
    const events = text.split("\\n\\n");
    text = events.pop();
    for (const event of events.filter((one) => one.includes("data: "))) {
      const data = JSON.parse(event.split("data: ")[1]);
      picture.src = "data:image/png;base64," + data.b64_json;
      await picture.decode();
      seen.push([data.type, picture.naturalWidth]);
    }
  }
  return {seen, job: answer.headers.get("x-job-id")};
}
async function video(url, body) {
  let made = await (await call(url, "/v1/videos", body)).json();
  const headers = {authorization: "Bearer " + KEY};
  while (["queued", "in_progress"].includes(made.status)) {
    await new Promise((resolve) => setTimeout(resolve, 200));
    made = await (await fetch(url + "/v1/videos/" + made.id, {headers})).json();
  }
  const job = await (await fetch(url + "/v1/jobs/" + made.id, {headers})).json();
  return {status: made.status, link: job.outputs[0].url};
}
async function play(link) {
  clip.src = link;
  await new Promise((resolve, reject) => { clip.onloadeddata = resolve; clip.onerror = reject; });
  const middle = clip.duration / 2;
  clip.currentTime = middle;
  await new Promise((resolve) => { clip.onseeked = resolve; });
  return {width: clip.videoWidth, at: Math.abs(clip.currentTime - middle), ranges: clip.seekable.length};
}
</script>"""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_args: object) -> None:
        """Write nothing."""


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Another origin, with a page of its own."""
    folder = tmp_path_factory.mktemp("front-end")
    (folder / "index.html").write_text(FRONT_END.replace("KEY", f'"{KEY}"'), encoding="utf-8")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, origin: str) -> Iterator[Server]:
    env = {
        "TRIDENT_CORS_ORIGINS": origin,
        "TRIDENT_API_KEYS": f"acme:{KEY}",
        "TRIDENT_DEVICES": "2",  # partial pictures need a device that has nothing better to do
    }
    folders = [MODELS / "shapes", MODELS / "motion"]
    with running_server(tmp_path_factory.mktemp("cors"), folders, env=env) as running:
        running.wait_ready()
        yield running


def test_a_streamed_picture_is_shown_as_it_comes(page: Page, gateway: Server, origin: str) -> None:
    page.goto(origin)
    body: dict[str, object] = {"model": "shapes", "prompt": "a circle", "partial_images": 2}
    body["num_inference_steps"] = 40
    shown = page.evaluate("([url, body]) => stream(url, body)", [gateway.url, body])
    assert shown["seen"][-1] == ["image_generation.completed", 64]
    assert shown["seen"][0] == ["image_generation.partial_image", 64]
    assert shown["job"].startswith("job_")  # CORS lets the page read it


def test_a_video_is_played_from_the_middle(page: Page, gateway: Server, origin: str) -> None:
    page.goto(origin)
    statuses: list[int] = []
    page.on("response", lambda answer: "/files/" in answer.url and statuses.append(answer.status))
    body = {"model": "motion", "prompt": "a red circle moves right", "num_inference_steps": 4}
    made = page.evaluate("([url, body]) => video(url, body)", [gateway.url, body])
    assert made["status"] == "completed"
    played = page.evaluate("(link) => play(link)", made["link"])
    assert played["width"] == 64
    assert played["ranges"] == 1
    assert played["at"] < 0.1
    assert set(statuses) == {206}


def test_a_page_of_an_origin_that_is_not_allowed_gets_nothing(page: Page, gateway: Server) -> None:
    page.goto("data:text/html,<title>elsewhere</title>")
    outcome = page.evaluate(
        """(url) => fetch(url + "/v1/models", {headers: {authorization: "Bearer x"}})
             .then(() => "read", (error) => error.name)""",
        gateway.url,
    )
    assert outcome == "TypeError"
