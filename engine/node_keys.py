"""The secret that a server and its nodes share, and the keys that both make of it.

Without a secret nothing is encrypted, and only this machine may connect. With one, every connection
is encrypted by CURVE (libzmq): each side knows the other's key, since both are made of the secret,
which never travels.
"""

from __future__ import annotations

import hashlib
from functools import cached_property

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator
from zmq.utils import z85

LEAST_CHARACTERS = 32
_KEY_BYTES = 32
_SALT = b"tridentserve node 1"


class NodeSecret:
    """What `TRIDENT_NODE_TOKEN` holds; printing it shows nothing.

    Raises:
        ValueError: it is too short to keep anybody out, or libzmq cannot encrypt.
    """

    def __init__(self, token: str) -> None:
        """Keep the token."""
        self._token = token.strip()
        if len(self._token) < LEAST_CHARACTERS:
            message = f"must have at least {LEAST_CHARACTERS} characters; make one with: openssl rand -hex 32"
            raise ValueError(message)
        if not zmq.has("curve"):
            raise ValueError("is of no use: this libzmq has no CURVE; install pyzmq as a wheel")

    def __repr__(self) -> str:
        return "NodeSecret(...)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NodeSecret) and other._token == self._token

    def __hash__(self) -> int:
        return hash(self._token)

    @cached_property
    def _secret_keys(self) -> tuple[bytes, bytes]:
        """The secret keys of node and server; slow on purpose, so that guessing is."""
        made = hashlib.scrypt(
            self._token.encode(), salt=_SALT, n=1 << 14, r=8, p=1, dklen=2 * _KEY_BYTES
        )
        return z85.encode(made[:_KEY_BYTES]), z85.encode(made[_KEY_BYTES:])

    @property
    def server_key(self) -> bytes:
        """Return the public key of the server, in Z85."""
        return bytes(zmq.curve_public(self._secret_keys[1]))

    def protect_node(self, socket: zmq.asyncio.Socket) -> None:
        """Have a node's socket encrypt, and prove who it is."""
        node, _server = self._secret_keys
        socket.curve_secretkey, socket.curve_publickey = node, zmq.curve_public(node)
        socket.curve_server = True

    def protect_server(self, socket: zmq.asyncio.Socket) -> None:
        """Have a server's socket speak to nodes that have the same secret, and to nobody else."""
        node, server = self._secret_keys
        socket.curve_secretkey, socket.curve_publickey = server, zmq.curve_public(server)
        socket.curve_serverkey = zmq.curve_public(node)


class Doorman:
    """Lets nobody in to a node's socket but servers that have its secret."""

    def __init__(self, context: zmq.asyncio.Context, secret: NodeSecret) -> None:
        """Stand at the door of every socket of `context`, which is still to be bound."""
        self._server_key = secret.server_key
        self._zap = AsyncioAuthenticator(context)

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether the other side's public key is the server's."""
        del domain
        return key == self._server_key

    def start(self) -> None:
        """Begin; on the running loop."""
        self._zap.start()
        self._zap.configure_curve_callback(credentials_provider=self)

    def stop(self) -> None:
        """End."""
        self._zap.stop()
