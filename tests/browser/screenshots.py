"""Takes the pictures of the pages that README and docs show: `make screenshots`.

Starts a server with the models that ship, gives it something to do, and simulates a cluster of 128
GPUs; then photographs what a person would see.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from playwright.sync_api import Page, ViewportSize, expect, sync_playwright

from tests.browser.conftest import MODELS, executable
from tests.support.server import Server, running_server

DOCS = Path(__file__).parents[2] / "docs"
RECORDED = DOCS.parent / "benchmarks" / "results" / "live_shift.jsonl.gz"
VIEWPORT: ViewportSize = {"width": 1280, "height": 860}
WISHES = (
    ("shapes", "a large red circle on a blue background"),
    ("shapes", "a green star left of a yellow square"),
    ("shapes", "a small orange heart on a black background"),
)
TRIDENT = Path(sys.executable).with_name("trident")
SIMULATED = (
    "--workload",
    "hetu",
    "--profile",
    "l20",
    "--model",
    "cogvideox1.5-5b",
    "--gpus",
    "128",
)


def ask(url: str, number: int) -> None:
    """Have one picture drawn, or every eighth time a clip begun."""
    if number % 8 == 0:
        body = {"model": "motion", "prompt": "a red circle moving right"}
        httpx.post(f"{url}/v1/videos", json=body, timeout=120).raise_for_status()
        return
    model, prompt = WISHES[number % len(WISHES)]
    body = {"model": model, "prompt": prompt, "seed": number}
    httpx.post(f"{url}/v1/images/generations", json=body, timeout=300).raise_for_status()


def photograph_playground(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.wait_for_function("document.querySelector('#model').options.length > 0")
    page.select_option("#model", "shapes")
    page.fill("#seed", "7")
    page.click("#go")
    expect(page.locator("#status")).to_contain_text("Done", timeout=120_000)
    page.screenshot(path=DOCS / "playground.png")


def photograph_console(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/console")
    expect(page.locator("#source")).to_have_text("live", timeout=60_000)
    with ThreadPoolExecutor(2) as pool:  # as many as this machine is likely to have cores
        list(pool.map(lambda number: ask(server.url, number), range(1, 48)))
        page.locator("#requests tbody button").nth(4).click()
        page.wait_for_timeout(1500)
        page.screenshot(path=DOCS / "console.png", full_page=True)


def photograph_simulation(page: Page, server: Server, folder: Path) -> None:
    events = folder / "simulated-128-gpus.jsonl"
    subprocess.run([TRIDENT, "simulate", *SIMULATED, "--events", events], check=True)
    page.goto(f"{server.url}/console")
    page.set_input_files("#file", events)
    expect(page.locator("#source")).to_contain_text(events.name, timeout=120_000)
    page.locator("#scrub").fill("500")
    for _ in range(6):
        page.click("#zoom-in")
    page.locator("#requests tbody button").nth(12).click()
    page.set_viewport_size(
        {"width": VIEWPORT["width"], "height": 1720}
    )  # all of the devices and the request
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(500)
    page.screenshot(path=DOCS / "console-simulated.png")
    page.set_viewport_size(VIEWPORT)


def photograph_shift(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/console")
    page.set_input_files("#file", RECORDED)
    expect(page.locator("#source")).to_contain_text(RECORDED.name, timeout=120_000)
    page.locator("#scrub").fill("620")  # shortly after the switch that follows the shift
    page.wait_for_timeout(500)
    page.screenshot(path=DOCS / "live-shift.png", full_page=True)


def main() -> None:
    """Take all pictures."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable(), args=["--no-sandbox"])
        page = chromium.new_page(viewport=VIEWPORT)
        page.set_default_timeout(120_000)
        models = [MODELS / "shapes", MODELS / "motion"]
        with running_server(Path(folder), models, flags=["--devices", "4"]) as server:
            server.wait_ready()
            photograph_playground(page, server)
            photograph_console(page, server)
            photograph_shift(page, server)
            photograph_simulation(page, server, Path(folder))
        chromium.close()


if __name__ == "__main__":
    main()
