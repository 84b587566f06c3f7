"""A newcomer's first minute: a prompt becomes a picture, a clip, and lines to copy."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from pathlib import Path

import av
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser.conftest import PHONE, faint_texts, walk
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


def test_every_one_of_several_pictures_is_watched(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.select_option("#model", "shapes")
    page.fill("#count", "2")
    page.fill("#steps", "40")
    page.click("#go")
    expect(page.locator("#status")).to_contain_text("Denoising")
    expect(page.locator("#stages .running")).to_be_visible()
    expect(page.locator("#status")).to_contain_text("Done")
    expect(page.locator("#outputs figure:not(.partial)")).to_have_count(2)
    for name in ("diffuse 1", "diffuse 2", "decode 1", "decode 2"):
        expect(page.locator("#stages")).to_contain_text(name)
    expect(page.locator("#progress")).to_be_hidden()


def test_a_decode_of_a_partial_picture_is_called_so(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.select_option("#model", "shapes")
    page.fill("#steps", "40")
    page.click("#go")
    expect(page.locator("#status")).to_contain_text("Done")
    names = page.locator("#stages .row > span:first-child").all_inner_texts()
    assert names.count("diffuse") == names.count("decode") == 1
    assert "partial image" in names


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


def copied(page: Page, what: str) -> str:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click(f"[data-copies={what}]")
    expect(page.locator(f"[data-copies={what}]")).to_have_text("Copied")
    return str(page.evaluate("navigator.clipboard.readText()"))


def run_copied(page: Page, folder: Path) -> tuple[list[Path], list[Path]]:
    """Run both snippets as a person would; return the files that each left."""
    made = []
    for what, command in (("curl", ["bash", "-c"]), ("python", [sys.executable, "-c"])):
        (folder / what).mkdir()
        subprocess.run([*command, copied(page, what)], cwd=folder / what, check=True, timeout=120)
        made.append(sorted((folder / what).iterdir()))
    return made[0], made[1]


@pytest.mark.parametrize("count", [1, 2])
def test_copied_lines_draw_the_same_pictures(
    page: Page, server: Server, tmp_path: Path, count: int
) -> None:
    page.goto(server.url)
    page.select_option("#model", "shapes")
    page.fill("#prompt", 'it\'s a "red" circle $HOME `id`')
    page.fill("#count", str(count))
    page.fill("#seed", "7")
    page.fill("#steps", "3")
    by_curl, by_python = run_copied(page, tmp_path)
    pictures = [file.read_bytes() for file in by_curl]
    assert len(pictures) == count
    assert [file.read_bytes() for file in by_python] == pictures
    page.click("#go")
    expect(page.locator("#status")).to_contain_text("Done")
    source = page.locator("#outputs img").first.get_attribute("src") or ""
    assert base64.b64decode(source.partition(",")[2]) == pictures[0]


def test_copied_lines_film_a_clip(page: Page, server: Server, tmp_path: Path) -> None:
    page.goto(server.url)
    page.select_option("#model", "motion")
    page.fill("#frames", "5")
    page.fill("#steps", "2")
    for [clip] in run_copied(page, tmp_path):
        with av.open(str(clip)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 5


def test_a_server_that_is_gone_is_said_to_be(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.wait_for_function("document.querySelector('#model').options.length > 0")
    page.route("**/v1/**", lambda route: route.abort())
    page.click("#go")
    expect(page.locator("#error")).to_contain_text("does not answer")
    expect(page.locator("#go")).to_be_enabled()


def test_text_can_be_read_in_light_and_dark(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.select_option("#model", "shapes")
    page.fill("#size", "1x1")
    page.click("#go")
    expect(page.locator("#error")).to_be_visible()
    assert faint_texts(page) == []


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


def test_on_a_phone_what_is_asked_for_comes_into_view(page: Page, server: Server) -> None:
    page.set_viewport_size(PHONE)
    page.goto(server.url)
    page.select_option("#model", "shapes")
    page.click("#go")
    expect(page.locator("#result-title")).to_be_in_viewport()
    expect(page.locator("#status")).to_contain_text("Done")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_tab_reaches_every_control_and_shows_where_it_is(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.select_option("#model", "shapes")
    page.focus("#prompt")
    found = walk(page, 14)
    wanted = {"model", "size", "count", "seed", "steps", "go", "Copy", "curl", "python"}
    assert wanted <= found.keys()
    assert {name for name, width_px in found.items() if width_px < 2} == set()
