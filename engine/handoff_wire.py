"""Hand-offs between nodes over TCP: what is said, and which bytes of a file travel.

A node serves its own hand-offs (`handoff_server`), any worker fetches from it (`handoff_client`).
Every frame is a length and a msgpack message; a `Sending` is followed by its bytes, a safetensors
file with only the fields that were asked for. Who asks proves that it has the deployment's token,
which itself never travels.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Collection
from pathlib import Path

import msgspec

LENGTH_BYTES = 4
MESSAGE_LIMIT_BYTES = 1 << 20
_HEADER_LENGTH_BYTES = 8


class Fetch(msgspec.Struct, frozen=True, tag=True):
    """Send the hand-off `name`, all of it or only `fields`; its lease begins anew."""

    proof: bytes
    name: str
    fields: tuple[str, ...] | None = None


class Release(msgspec.Struct, frozen=True, tag=True):
    """The hand-off `name` is not needed here any more."""

    proof: bytes
    name: str


class Sending(msgspec.Struct, frozen=True, tag=True):
    """So many bytes follow."""

    size_bytes: int


class Released(msgspec.Struct, frozen=True, tag=True):
    """The hand-off is freed, or was before."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The request cannot be granted."""

    reason: str


Asked = Fetch | Release
Answer = Sending | Released | Refused


class Span(msgspec.Struct, frozen=True):
    """Bytes of a file."""

    offset: int
    size_bytes: int


class Part(msgspec.Struct, frozen=True):
    """A safetensors file cut down to some fields: a new header, then pieces of the old file."""

    header: bytes
    spans: tuple[Span, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole."""
        return len(self.header) + sum(span.size_bytes for span in self.spans)


def proof_of(token: str, asked: type[Asked], name: str) -> bytes:
    """Return what shows that whoever asks for `name` has the token.

    Whoever overhears it can ask for the same again, which they have overheard as well.
    """
    return hmac.digest(token.encode(), f"{asked.__name__} {name}".encode(), hashlib.sha256)


def cut(path: Path, fields: Collection[str] | None) -> Part:
    """Return what of a safetensors file travels; raises KeyError if a field is not in it."""
    if fields is None:
        return Part(b"", (Span(0, path.stat().st_size),))
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_HEADER_LENGTH_BYTES), "little")
        old = json.loads(file.read(length))
    kept, spans, end = {}, [], 0
    for name in sorted(fields, key=lambda name: old[name]["data_offsets"][0]):
        begin, stop = old[name]["data_offsets"]
        kept[name] = {**old[name], "data_offsets": [end, end + stop - begin]}
        spans.append(Span(_HEADER_LENGTH_BYTES + length + begin, stop - begin))
        end += stop - begin
    described = json.dumps(kept).encode()
    described += b" " * (-len(described) % _HEADER_LENGTH_BYTES)
    return Part(len(described).to_bytes(_HEADER_LENGTH_BYTES, "little") + described, tuple(spans))


def frame(message: Asked | Answer) -> bytes:
    """Return a message as it travels."""
    content = msgspec.msgpack.encode(message)
    return len(content).to_bytes(LENGTH_BYTES, "big") + content
