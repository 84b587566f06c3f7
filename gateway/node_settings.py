"""What an operator can set of nodes: where a server finds them, where they listen, what both share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from engine.node_keys import NodeSecret
from gateway.addresses import Address, parse_address

DEFAULT_LISTEN: Final = "127.0.0.1:7410"
_SECRET: Final = "TRIDENT_NODE_TOKEN"  # noqa: S105 - its name


class NodeSettings(msgspec.Struct, frozen=True):
    """What a node agent is told besides what it has in common with a server."""

    listen: Address
    handoff_port: int

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> NodeSettings:
        """Read where to listen; hand-offs are served on the next port unless told otherwise.

        Raises:
            ValueError: a setting is wrong; the message names it.
        """
        listen = _address(env.get("TRIDENT_LISTEN", "").strip() or DEFAULT_LISTEN, "TRIDENT_LISTEN")
        _need_secret("TRIDENT_LISTEN (--listen)", [listen], env)
        port = env.get("TRIDENT_HANDOFF_PORT", "").strip() or str(listen.port + 1)
        host = str(listen).rpartition(":")[0]  # an IPv6 one in its brackets
        return cls(listen, _address(f"{host}:{port}", "TRIDENT_HANDOFF_PORT").port)


def read_nodes(env: Mapping[str, str]) -> tuple[Address, ...]:
    """Read where nodes lend devices; on other machines only with a secret.

    Raises:
        ValueError: an address is wrong, or the secret is missing.
    """
    words = (word.strip() for word in env.get("TRIDENT_NODES", "").split(","))
    found = tuple(_address(word, "TRIDENT_NODES (--node)") for word in words if word)
    if len(set(found)) < len(found):
        raise ValueError("TRIDENT_NODES (--node) names a node twice.")
    _need_secret("TRIDENT_NODES (--node)", found, env)
    return found


def read_node_secret(env: Mapping[str, str]) -> NodeSecret | None:
    """Read what server and nodes share; complaints never quote it.

    Raises:
        ValueError: it is too short, or its file cannot be read.
    """
    text = env.get(_SECRET, "").strip()
    if path := env.get(f"{_SECRET}_FILE", "").strip():
        try:
            text = Path(path).expanduser().read_text(encoding="utf-8")
        except OSError as error:
            message = f"{_SECRET}_FILE {path} cannot be read: {error.strerror}."
            raise ValueError(message) from error
    try:
        return NodeSecret(text) if text else None
    except ValueError as error:
        message = f"{_SECRET} {error}."
        raise ValueError(message) from error


def _address(text: str, name: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        message = f"{name}: {error}."
        raise ValueError(message) from error


def _need_secret(name: str, addresses: Sequence[Address], env: Mapping[str, str]) -> None:
    """Refuse connections between machines that nothing protects."""
    far = [address for address in addresses if not address.is_loopback]
    if far and read_node_secret(env) is None:
        message = (
            f"{name} has {far[0]}, which is no loopback address: set the same {_SECRET} (or {_SECRET}_FILE) "
            "on both sides; make one with: openssl rand -hex 32"
        )
        raise ValueError(message)
