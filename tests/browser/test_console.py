"""An operator sees stages move: live, and in the event file of a simulation."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import PHONE, faint_texts, walk
from tests.support.server import Server


@pytest.fixture(scope="module")
def event_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("events") / "simulated.jsonl"
    trident = Path(sys.executable).with_name("trident")
    wanted = ["--workload", "hetu", "--profile", "l20", "--model", "cogvideox1.5-5b"]
    size = ["--gpus", "16", "--duration", "200", "--rate-scale", "0.12"]
    subprocess.run([trident, "simulate", *wanted, *size, "--events", file], check=True)
    return file


def open_file(page: Page, server: Server, file: Path) -> None:
    page.goto(f"{server.url}/console")
    page.set_input_files("#file", file)
    expect(page.locator("#source")).to_contain_text(file.name)


def test_a_live_request_shows_up_with_its_stages_and_why(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/console")
    expect(page.locator("#source")).to_have_text("live")
    body = {"model": "shapes", "prompt": "a red circle", "seed": 1}
    httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=120).raise_for_status()
    page.locator("#requests tbody button").first.click()
    detail = page.locator("#detail")
    for stage in ("encode", "diffuse", "decode"):
        expect(detail.locator("table")).to_contain_text(stage)
    expect(detail.locator(".why li").first).to_contain_text("encode on")
    expect(page.locator("#slo tbody")).to_contain_text("shapes 64x64")


def test_what_runs_now_is_shown_before_it_has_ended(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/console")
    expect(page.locator("#source")).to_have_text("live")
    body = {"model": "shapes", "prompt": "a blue star", "n": 2, "num_inference_steps": 60}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(
            httpx.post, f"{server.url}/v1/images/generations", json=body, timeout=300
        )
        second = page.locator("#requests tbody tr", has_text="/1").first
        expect(second).to_contain_text("running")
        second.locator("button").click()
        expect(page.locator("#detail svg.dag")).to_contain_text("of 60")
        expect(page.locator("#detail table")).to_contain_text("running")
        asked.result().raise_for_status()
    expect(second).not_to_contain_text("running")
    expect(page.locator("#detail table")).not_to_contain_text("running")


def test_devices_are_in_the_order_of_their_numbers(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/console")
    expect(page.locator("#residency .device")).to_have_count(3)
    names = page.locator("#residency .device strong").all_inner_texts()
    assert names == ["cpu:0", "cpu:1", "cpu:2"]


def test_who_opens_a_file_hears_no_more_of_the_live_server(
    page: Page, server: Server, event_file: Path
) -> None:
    page.goto(f"{server.url}/console")
    expect(page.locator("#source")).to_have_text("live")
    with page.expect_event("requestfailed", lambda asked: "/console/stream" in asked.url):
        page.set_input_files("#file", event_file)
    expect(page.locator("#residency .device")).to_have_count(16)
    expect(page.locator("#source")).to_contain_text(event_file.name)
    page.click("#live")
    expect(page.locator("#source")).to_have_text("live")
    expect(page.locator("#residency .device")).to_have_count(3)


def test_a_server_that_wants_the_admin_key_is_given_it(page: Page, server: Server) -> None:
    def ask_for_key(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer sk-operator":
            route.continue_()
        else:
            said = {"error": {"message": "The console wants the admin key."}}
            route.fulfill(status=401, json=said)

    page.route("**/console/stream", ask_for_key)
    page.goto(f"{server.url}/console")
    expect(page.locator("#trouble")).to_contain_text("wants the admin key")
    page.fill("#key", "sk-operator")
    page.keyboard.press("Enter")
    expect(page.locator("#source")).to_have_text("live")
    expect(page.locator("#key-form")).to_be_hidden()


def test_the_residency_map_shows_what_lies_on_every_device(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/console")
    expect(page.locator("#residency .device")).to_have_count(3)
    expect(page.locator("#residency")).to_contain_text("shapes diffuse")


def test_a_simulation_is_shown_with_its_requests(
    page: Page, server: Server, event_file: Path
) -> None:
    open_file(page, server, event_file)
    expect(page.locator("#residency .device")).to_have_count(16)
    expect(page.locator("#facts")).to_contain_text("100.0%")
    page.locator("#requests tbody button").last.click()
    expect(page.locator("#detail svg.dag")).to_be_visible()
    why = page.locator("#detail .why li")
    expect(why.first).to_contain_text("encode on")
    expect(why.last).to_contain_text("decode on")
    expect(page.locator("#placements li")).to_contain_text("There was no placement yet")


def test_a_packed_event_file_opens_too(
    page: Page, server: Server, event_file: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "simulated.jsonl.gz"
    packed.write_bytes(gzip.compress(event_file.read_bytes()))
    open_file(page, server, packed)
    expect(page.locator("#residency .device")).to_have_count(16)


def test_a_file_shows_what_the_placement_wants_beside_what_is_there(
    page: Page, server: Server, tmp_path: Path
) -> None:
    encode = {"model": "m", "stage": "encode", "bytes": 1}
    device = {"id": "g0", "node": "n0", "memory_bytes": 9, "stages": [encode]}
    told = [
        {"kind": "cluster", "devices": [device]},
        {"kind": "place", "t": 0, "version": 1, "stages": {"g0": ["m/encode"]}},
        {"kind": "switch", "t": 5, "version": 2, "stages": {"g0": ["m/decode"]}, "why": "a shift"},
    ]
    file = tmp_path / "switch.jsonl"
    file.write_text("".join(f"{json.dumps(event)}\n" for event in told))
    open_file(page, server, file)
    expect(page.locator("#residency .chip.spare")).to_have_text("m encode")
    expect(page.locator("#residency .chip.wanted")).to_have_text("m decode")
    expect(page.locator("#placements li").last).to_contain_text("version 2: a shift")
    page.locator("#scrub").fill("0")
    expect(page.locator("#residency .chip.wanted")).to_have_count(0)


def test_the_timeline_is_walked_with_the_keyboard(
    page: Page, server: Server, event_file: Path
) -> None:
    open_file(page, server, event_file)
    page.focus("#timeline")
    for key in ("+", "ArrowRight", "ArrowDown", "ArrowDown", "-", "Home", "Enter"):
        page.keyboard.press(key)
    expect(page.locator("#detail code")).to_be_visible()


def test_time_can_be_turned_back(page: Page, server: Server, event_file: Path) -> None:
    open_file(page, server, event_file)
    ended = page.locator("#facts").inner_text()
    page.locator("#scrub").fill("100")
    assert page.locator("#facts").inner_text() != ended


def test_a_file_that_is_none_is_named(page: Page, server: Server, tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl"
    file.write_text('{"kind": "nothing"}\nnot json\n')
    open_file(page, server, file)
    expect(page.locator("#trouble")).to_contain_text("no event file")


def test_a_phone_shows_the_console_without_scrolling_sideways(
    page: Page, server: Server, event_file: Path
) -> None:
    page.set_viewport_size(PHONE)
    open_file(page, server, event_file)
    page.locator("#requests tbody button").last.click()
    expect(page.locator("#detail svg.dag")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_text_can_be_read_in_light_and_dark(page: Page, server: Server, event_file: Path) -> None:
    open_file(page, server, event_file)
    page.locator("#requests tbody button").last.click()
    assert faint_texts(page) == []


def test_a_file_that_is_damaged_is_named(page: Page, server: Server, tmp_path: Path) -> None:
    file = tmp_path / "damaged.jsonl.gz"
    file.write_bytes(b"this is no gzip")
    page.goto(f"{server.url}/console")
    page.set_input_files("#file", file)
    expect(page.locator("#trouble")).to_contain_text("damaged.jsonl.gz cannot be read")


def test_tab_reaches_every_control_and_shows_where_it_is(
    page: Page, server: Server, event_file: Path
) -> None:
    open_file(page, server, event_file)
    page.locator("h1").click()
    found = walk(page, 10)
    wanted = {"file", "live", "Playground", "zoom-out", "zoom-in", "fit", "scrub", "timeline"}
    assert wanted <= found.keys()
    assert {name for name, width_px in found.items() if width_px < 2} == set()
