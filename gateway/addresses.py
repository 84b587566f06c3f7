"""Addresses of other machines, as people write them: HOST:PORT, or [ADDRESS]:PORT for IPv6."""

from __future__ import annotations

from typing import Final, NamedTuple

from gateway.auth.hosts import is_loopback

_MAX_PORT: Final = 65_535


class Address(NamedTuple):
    """A host, without brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return it as people write it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)


def parse_address(text: str) -> Address:
    """Return what a text says.

    Raises:
        ValueError: it is no address; the message says how one looks.
    """
    host, _, port = text.rpartition(":")
    has_brackets = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if has_brackets else host
    right = bare and (has_brackets or ":" not in bare) and port.isdecimal()
    if not right or not 0 < int(port) <= _MAX_PORT:
        message = f"{text!r} is no address; write HOST:PORT, such as 10.0.0.2:7410"
        raise ValueError(message)
    return Address(bare, int(port))
