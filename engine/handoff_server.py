"""A node's hand-offs for other nodes: lent for a time, served over TCP, freed when that is over.

A lease protects the owner: if the other node takes what was lent, it says so and the memory is
freed; if it dies, the lease runs out. Every fetch begins the lease anew.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog

from engine.handoff_wire import (
    LENGTH_BYTES,
    MESSAGE_LIMIT_BYTES,
    Answer,
    Asked,
    Fetch,
    Refused,
    Release,
    Released,
    Sending,
    cut,
    frame,
    proof_of,
)

if TYPE_CHECKING:
    from engine.handoff import HandoffStore
    from engine.types import HandoffRef

PATIENCE_S = 30.0  # for a peer to say what it wants, or to take the next piece
log = structlog.get_logger(__name__)


class HandoffServer:
    """Lends hand-offs of one store.

    Args:
        token: shared by the nodes of a deployment; who does not have it gets nothing.
        lease_s: how long a hand-off is kept after it was lent or last fetched.
        now_s: a clock that never steps back.

    Attributes:
        port: on which it listens, once it does.
    """

    def __init__(
        self, store: HandoffStore, token: str, *, lease_s: float, now_s: Callable[[], float]
    ) -> None:
        """Lend nothing yet."""
        self._store, self._token = store, token
        self._lease_s, self._now_s = lease_s, now_s
        self._lent: dict[str, tuple[HandoffRef, float]] = {}
        self._decoder = msgspec.msgpack.Decoder(Asked)
        self._server: asyncio.Server | None = None
        self._expiring: asyncio.Task[None] | None = None
        self._address = ""
        self.port = 0

    async def start(self, host: str, port: int = 0) -> None:
        """Listen; port 0 lets the system choose."""
        self._server = await asyncio.start_server(self._serve, host, port)
        name, self.port = self._server.sockets[0].getsockname()[:2]
        self._address = f"{name}:{self.port}"
        self._expiring = asyncio.create_task(self._expire_for_ever())

    def lend(self, ref: HandoffRef) -> HandoffRef:
        """Begin a lease on a live hand-off and return the reference that other nodes use."""
        self._lent[Path(ref.path).name] = (ref, self._now_s() + self._lease_s)
        return msgspec.structs.replace(ref, host=self._address)

    @property
    def lent(self) -> tuple[HandoffRef, ...]:
        """Hand-offs that are lent now."""
        return tuple(ref for ref, _until_s in self._lent.values())

    def expire(self) -> int:
        """Free what nobody asked for in time; return how many hand-offs that were."""
        over = [name for name, (_ref, until_s) in self._lent.items() if until_s <= self._now_s()]
        for name in over:
            log.warning("handoff_lease_expired", node=self._lent[name][0].node)
            self._free(name)
        return len(over)

    def free(self, ref: HandoffRef) -> None:
        """Free a hand-off that nobody needs any more, whoever had it."""
        self._free(Path(ref.path).name)

    def _free(self, name: str) -> None:
        if (lent := self._lent.pop(name, None)) is not None and self._store.holds(lent[0]):
            self._store.release(lent[0])

    async def _expire_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 10)
            self.expire()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request of one peer; whoever is slow or wrong is dropped."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                size = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")
                if size > MESSAGE_LIMIT_BYTES:
                    return
                asked = self._decoder.decode(await reader.readexactly(size))
            await self._answer(asked, writer)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, msgspec.MsgspecError) as error:
            log.warning("handoff_peer_dropped", detail=repr(error))
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        answer: Answer
        if not hmac.compare_digest(asked.proof, proof_of(self._token, type(asked), asked.name)):
            answer = Refused("The token is wrong.")
        elif isinstance(asked, Release):
            self._free(asked.name)
            answer = Released()
        elif asked.name not in self._lent:
            answer = Refused("The hand-off was never lent, or its lease is over.")
        else:
            await self._send(asked, writer)
            return
        writer.write(frame(answer))
        await writer.drain()

    async def _send(self, asked: Fetch, writer: asyncio.StreamWriter) -> None:
        """Send the fields of a hand-off; a peer that stops reading is dropped."""
        ref, _until_s = self._lent[asked.name]
        self._lent[asked.name] = (ref, self._now_s() + self._lease_s)
        try:
            part = await asyncio.to_thread(cut, Path(ref.path), asked.fields)
        except KeyError as error:
            writer.write(frame(Refused(f"The hand-off has no field {error}.")))
            return
        writer.write(frame(Sending(part.size_bytes)) + part.header)
        async with asyncio.timeout(PATIENCE_S):
            await writer.drain()
        loop = asyncio.get_running_loop()
        file = await asyncio.to_thread(Path(ref.path).open, "rb")
        with file:
            for span in part.spans:
                if span.size_bytes:
                    async with asyncio.timeout(PATIENCE_S):
                        await loop.sendfile(writer.transport, file, span.offset, span.size_bytes)

    async def close(self) -> None:
        """Stop listening and free everything that is lent; idempotent."""
        if self._expiring is not None:
            self._expiring.cancel()
            await asyncio.gather(self._expiring, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        for name in list(self._lent):
            self._free(name)
