"""A newcomer's first minute: a prompt becomes a picture, a clip, and lines to copy."""

from __future__ import annotations

import base64
import io

from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser.conftest import PHONE
from tests.support.server import Server


def drawn(page: Page) -> Image.Image:
    source = page.locator("#outputs img").get_attribute("src") or ""
    return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))


def test_the_first_click_draws_a_picture(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.select_option("#model", "shapes")
    page.click("#go")
    expect(page.locator("#status")).to_contain_text("Done")
    assert drawn(page).size == (64, 64)
    for stage in ("encode", "diffuse", "decode"):
        expect(page.locator("#stages")).to_contain_text(stage)
    expect(page.locator("#outputs figcaption")).to_contain_text("seed")


def test_partial_pictures_arrive_before_the_picture(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.select_option("#model", "shapes")
    page.evaluate(
        """() => { window.partials = 0;
        new MutationObserver(() => { if (document.querySelector('#outputs .partial')) partials += 1; })
          .observe(document.querySelector('#outputs'), {childList: true}); }"""
    )
    page.fill("#steps", "40")
    page.click("#go")
    expect(page.locator("#status")).to_contain_text("Done")
    assert page.evaluate("window.partials") >= 1


def test_a_clip_plays(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.select_option("#model", "motion")
    page.click("#go")
    expect(page.locator("#status")).to_contain_text("Done")
    page.wait_for_function("document.querySelector('#outputs video')?.readyState >= 2")
    assert page.evaluate("document.querySelector('#outputs video').videoWidth") == 64


def test_the_keyboard_alone_is_enough(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.wait_for_function("document.querySelector('#model').options.length > 0")
    page.focus("#prompt")
    page.keyboard.press("Control+a")
    page.keyboard.type("a small green star")
    page.focus("#seed")
    page.keyboard.type("7")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("Done")
    expect(page.locator("#outputs figcaption")).to_contain_text("seed 7")


def test_the_lines_to_copy_say_what_the_form_says(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.fill("#prompt", "it's a blue moon")
    page.fill("#seed", "11")
    curl, python = page.locator("#curl").inner_text(), page.locator("#python").inner_text()
    assert server.url in curl
    assert server.url in python
    assert '"seed":11' in curl
    assert '"seed":11' in python
    assert "it'\\''s a blue moon" in curl


def test_an_error_is_shown_in_the_servers_words(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.fill("#size", "1x1")
    page.click("#go")
    expect(page.locator("#error")).to_contain_text("1x1")


def test_a_phone_shows_everything_without_scrolling_sideways(page: Page, server: Server) -> None:
    page.set_viewport_size(PHONE)
    page.goto(server.url)
    page.wait_for_function("document.querySelector('#model').options.length > 0")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
