"""The pages that come with the server: the playground at `/`, the console at `/console`.

Plain files of this package, read once; nothing is built and nothing is fetched from elsewhere. What
they show comes from the API like anybody's requests, so they need no key to be looked at.
"""

from __future__ import annotations

from importlib import resources
from typing import Final

from litestar import Controller, Response, get
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

_MEDIA_TYPES: Final = {"css": "text/css", "js": "text/javascript", "html": "text/html"}
_HEADERS: Final = {
    # `data:` and `blob:` are pictures that the page itself has received.
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
        "object-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def _read_pages() -> dict[str, bytes]:
    folder = resources.files("gateway") / "pages"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


_PAGES: Final = _read_pages()


class PageController(Controller):
    """Pages for people."""

    include_in_schema = False

    @get("/", sync_to_thread=False)
    def playground(self) -> Response[bytes]:
        """Return the page where a newcomer draws something."""
        return _page("playground.html")

    @get("/console", sync_to_thread=False)
    def console(self) -> Response[bytes]:
        """Return the page where an operator sees stages move."""
        return _page("console.html")

    @get("/static/{name:str}", sync_to_thread=False)
    def static(self, name: FromPath[str]) -> Response[bytes]:
        """Return a script or a style sheet of the pages."""
        if name not in _PAGES or name.endswith(".html"):
            raise NotFoundException
        return _page(name)


def _page(name: str) -> Response[bytes]:
    media_type = _MEDIA_TYPES[name.rpartition(".")[2]]
    return Response(_PAGES[name], media_type=media_type, headers=dict(_HEADERS))
