"""By which names a server without keys may be called.

Only this machine reaches it, but a browser here may be sent to it by any page whose host's name has
been pointed at this machine (DNS rebinding). Such a page's requests still carry that name.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gateway.errors import ForbiddenError

if TYPE_CHECKING:
    from collections.abc import Mapping


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class OwnNames:
    """The names of this machine, and the one that the operator has given the server."""

    def __init__(self, public_base_url: str | None) -> None:
        """Take the host of `public_base_url` for one of our names, too."""
        self._public = None if public_base_url is None else urlsplit(public_base_url).hostname

    def need(self, headers: Mapping[str, str]) -> None:
        """Refuse a call by any other name.

        Raises:
            ForbiddenError: its Host header is none of ours.
        """
        host = headers.get("host", "")
        name = _name_of(host)
        if name != self._public and not is_loopback(name) and not name.endswith(".localhost"):
            message = (
                f"Without keys this server is called localhost or 127.0.0.1 only, not {host[:80]!r}: "
                "any web page could be behind another name. Make a key with: trident keys create "
                "--tenant NAME, or set TRIDENT_PUBLIC_BASE_URL to the address that you use."
            )
            raise ForbiddenError(message, code="host_not_allowed")


def _name_of(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # brackets without an address
        return ""
