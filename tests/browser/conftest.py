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
