"""Fetches hand-offs of other nodes over TCP, with a deadline for every piece.

A node's controller leaves the token of its deployment beside the hand-off folder, for its workers.
"""

from __future__ import annotations

import socket
from collections.abc import Collection
from pathlib import Path

import msgspec

from engine.errors import StageFailedError
from engine.handoff_wire import (
    LENGTH_BYTES,
    Answer,
    Asked,
    Fetch,
    Refused,
    Release,
    Sending,
    frame,
    proof_of,
)
from engine.types import HandoffRef


class HandoffClient:
    """Asks the node that holds a hand-off.

    Args:
        token: the deployment's.
        patience_s: for a connection, and for each piece of an answer.
    """

    def __init__(self, token: str, patience_s: float = 30.0) -> None:
        """Connect to nobody yet."""
        self._token, self._patience_s = token, patience_s
        self._decoder = msgspec.msgpack.Decoder(Answer)

    def fetch(self, ref: HandoffRef, fields: Collection[str] | None = None) -> bytearray:
        """Return a hand-off, or some fields of it, as the content of a safetensors file.

        Raises:
            StageFailedError: the node does not answer in time (worth another try), or the hand-off
                is gone (not).
        """
        wanted, name = None if fields is None else tuple(fields), Path(ref.path).name
        return self._ask(ref, Fetch(proof_of(self._token, Fetch, name), name, wanted))

    def release(self, ref: HandoffRef) -> None:
        """Tell the node that holds a hand-off to free it; harmless if it has."""
        name = Path(ref.path).name
        self._ask(ref, Release(proof_of(self._token, Release, name), name))

    def _ask(self, ref: HandoffRef, asked: Asked) -> bytearray:
        host, _, port = ref.host.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), self._patience_s) as peer:
                peer.sendall(frame(asked))
                answer = self._decoder.decode(_receive(peer, _length(peer)))
                content = bytearray()
                if isinstance(answer, Sending):
                    content = _receive(peer, answer.size_bytes)
        except (OSError, ValueError) as error:  # a timeout is an OSError, bad msgpack a ValueError
            message = f"Node {ref.host} did not hand over {ref.node}: {error!r}."
            raise StageFailedError(message, retryable=True) from error
        if isinstance(answer, Refused):
            message = f"Node {ref.host} refused to hand over {ref.node}: {answer.reason}"
            raise StageFailedError(message, retryable=False)
        return content


def leave_token(folder: Path, token: str) -> None:
    """Let workers that write to `folder` fetch from other nodes; nobody else may read it."""
    _token_file(folder).touch(mode=0o600)
    _token_file(folder).write_text(token, encoding="utf-8")


def client_beside(folder: Path) -> HandoffClient | None:
    """Return what fetches from other nodes, if the node that `folder` is of knows any."""
    path = _token_file(folder)
    return HandoffClient(path.read_text(encoding="utf-8")) if path.exists() else None


def _token_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.token")


def _length(peer: socket.socket) -> int:
    return int.from_bytes(_receive(peer, LENGTH_BYTES), "big")


def _receive(peer: socket.socket, size_bytes: int) -> bytearray:
    content = bytearray(size_bytes)
    view = memoryview(content)
    while view:
        received = peer.recv_into(view)
        if received == 0:
            raise ConnectionError("the connection ended early")
        view = view[received:]
    return content
