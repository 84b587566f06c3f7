"""A headless Chromium and a live server with the models that ship."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.server import Server, running_server

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
MODELS = Path(__file__).parents[2] / "models"
expect.set_options(timeout=60_000)
PHONE = {"width": 390, "height": 844}


def executable() -> str | None:
    """Return the browser of this machine, or None for the one that playwright installed."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=executable(), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folders = [MODELS / "shapes", MODELS / "motion"]
    with running_server(tmp_path_factory.mktemp("browser"), folders) as running:
        running.wait_ready()
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab that fails its test if a script does."""
    context = browser.new_context(viewport={"width": 1360, "height": 900})
    tab = context.new_page()
    tab.set_default_timeout(60_000)
    broken: list[str] = []
    tab.on("pageerror", lambda error: broken.append(str(error)))
    yield tab
    context.close()
    assert broken == []


# Ratios of text to what it lies on, by WCAG 2's formula: what is drawn too faint, with its ratio.
FAINT = """() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const [r, g, b, a = 1] = parse(getComputedStyle(at).backgroundColor);
      if (a === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].filter((c) => c.nodeType === 3).map((c) => c.data.trim()).join("");
    if (!own || node.disabled || node.closest("svg") || !node.checkVisibility()) continue;
    const [one, two] = [parse(getComputedStyle(node).color), ground(node)].map(light);
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    if (ratio < 4.5) found.push(`${own.slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""


def faint_texts(page: Page) -> list[str]:
    """Return texts with less contrast than WCAG AA asks for, in the light and the dark scheme."""
    found = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found += [f"{scheme}: {text}" for text in page.evaluate(FAINT)]
    return found


# Where the keyboard is, and how thick the line is that shows it there (around the label of an
# input that is itself hidden).
FOCUSED = """() => {
  const at = document.activeElement;
  if (at === document.body) return null;
  const shown = at.matches(".visually-hidden") ? at.closest("label") : at;
  const style = getComputedStyle(shown);
  return [at.id || at.textContent.trim(), style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth)];
}"""


def walk(page: Page, steps: int) -> dict[str, float]:
    """Press Tab so often; return where that led, and the width of each focus ring in pixels."""
    found: dict[str, float] = {}
    for _ in range(steps):
        page.keyboard.press("Tab")
        if (seen := page.evaluate(FOCUSED)) is not None:  # behind the last control is nothing
            found[seen[0]] = seen[1]
    return found
