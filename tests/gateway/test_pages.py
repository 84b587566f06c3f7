"""The pages work without anything from elsewhere."""

from __future__ import annotations

import re
from importlib import resources

import httpx
import pytest

from gateway.auth.keys import parse_keys
from tests.gateway.conftest import Serve

PAGES = {"/": "TridentServe playground", "/console": "TridentServe console"}
FILES = sorted(file.name for file in (resources.files("gateway") / "pages").iterdir())


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_is_served_without_a_key(serve: Serve, path: str) -> None:
    async with serve(keys=parse_keys("acme:sk-secret-1")) as client:
        response = await client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert f"<title>{PAGES[path]}</title>" in response.text


@pytest.mark.parametrize("path", PAGES)
async def test_everything_that_a_page_names_is_served_by_us(
    client: httpx.AsyncClient, path: str
) -> None:
    page = (await client.get(path)).text
    named = re.findall(r'(?:href|src)="(/static/[^"]+)"', page)
    assert named
    for address in named:
        assert (await client.get(address)).status_code == 200


@pytest.mark.parametrize("name", FILES)
def test_no_file_of_the_pages_needs_another_server(name: str) -> None:
    text = (resources.files("gateway") / "pages" / name).read_text(encoding="utf-8")
    foreign = re.findall(r"https?://[^\s\"'`)]+", text)
    assert [address for address in foreign if address != "http://www.w3.org/2000/svg"] == []


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".js")])
async def test_every_module_that_a_script_imports_exists(
    client: httpx.AsyncClient, name: str
) -> None:
    script = (await client.get(f"/static/{name}")).text
    for address in re.findall(r'from "(/static/[^"]+)"', script):
        assert (await client.get(address)).status_code == 200


async def test_pages_forbid_scripts_of_others(client: httpx.AsyncClient) -> None:
    policy = (await client.get("/console")).headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("name", ["nothing.js", "console.html", "..%2Fapp.py", "__init__.py"])
async def test_nothing_but_scripts_and_styles_is_static(
    client: httpx.AsyncClient, name: str
) -> None:
    assert (await client.get(f"/static/{name}")).status_code == 404
