"""A server's connection to one node: opened once, lost once.

It never reconnects by itself: a node that was out of reach has given up what it did, so whoever is
interested opens another line.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NoReturn, TypeAlias

import msgspec
import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from engine.node_keys import NodeSecret
from engine.node_wire import (
    BEAT_S,
    LARGEST_BYTES,
    LONG_SLEEP_S,
    MOST_WAITING,
    SILENCE_S,
    Beat,
    Bye,
    Fits,
    FromNode,
    Hello,
    Inspect,
    Refused,
    ToNode,
    Welcome,
)

ANSWER_S = 10.0  # for a node to say whether it serves us; it may have to end its work for another
_LINGER_MS = 500
_CONNECT_MS = 5000
_REFUSALS = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)
_GONE = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
Hear: TypeAlias = Callable[[FromNode, Sequence[bytes]], Awaitable[None]]


class NodeAwayError(Exception):
    """A node does not serve us; the message says why, and what to do.

    Attributes:
        for_good: trying again is of no use until somebody has mended something.
    """

    def __init__(self, message: str, *, for_good: bool = False) -> None:
        """Remember whether to try again soon."""
        super().__init__(message)
        self.for_good = for_good


class NodeLine:
    """One connection to the node at `address` (HOST:PORT), made at once.

    Raises:
        NodeAwayError: there can be no such address.
    """

    def __init__(
        self, context: zmq.asyncio.Context, address: str, secret: NodeSecret | None
    ) -> None:
        """Begin to connect."""
        self._address = address
        self._socket = socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.RECONNECT_IVL, -1)
        socket.set_hwm(MOST_WAITING)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, _CONNECT_MS)
        socket.setsockopt(zmq.MAXMSGSIZE, LARGEST_BYTES)
        socket.setsockopt(zmq.IPV6, 1)
        if secret is not None:
            secret.protect_server(socket)
        self._monitor = socket.get_monitor_socket(zmq.EVENT_CONNECTED | _REFUSALS | _GONE)
        self._decoder = msgspec.msgpack.Decoder(FromNode)
        self._connected = self._is_stuck = self._is_hearing = False
        self._heard_s = time.monotonic()
        try:
            socket.connect(f"tcp://{address}")
        except zmq.ZMQError as error:
            self.close()
            raise NodeAwayError(f"Node {address} has no address: {error}.") from error

    def send(self, message: ToNode, contents: Sequence[bytes] = ()) -> None:
        """Say something; if the node does not take it, the line is lost, as `attend` will say."""
        frames = [msgspec.msgpack.encode(message), *contents]
        self._is_stuck |= not sent_at_once(self._socket, frames)

    async def ask(self, question: Hello | Inspect) -> Welcome | Fits:
        """Return the node's answer: `Welcome` to `Hello`, `Fits` to `Inspect`.

        Raises:
            NodeAwayError: it refuses, or there is no answer in time.
        """
        self.send(question)
        answer = asyncio.ensure_future(self._receive())
        lost = asyncio.ensure_future(self._lost())
        try:
            await asyncio.wait({answer, lost}, timeout=ANSWER_S, return_when="FIRST_COMPLETED")
            if not answer.done():
                raise self._silence(was_sent_away=lost.done())
            said, _contents = answer.result()
        except msgspec.MsgspecError as error:
            raise self._misunderstood(str(error)) from error
        finally:
            await _end(answer, lost)
        match question, said:
            case (Hello(), Welcome() as granted) | (Inspect(), Fits() as granted):
                return granted
            case _, Refused(reason, for_good):
                message = f"Node {self._address} refuses this server: {reason}"
                raise NodeAwayError(message, for_good=for_good)
        raise self._misunderstood(f"nobody asked for {type(said).__name__}")

    def _misunderstood(self, detail: str) -> NodeAwayError:
        return NodeAwayError(
            f"Node {self._address} answers what this server does not understand ({detail}); both need "
            "one version of TridentServe.",
            for_good=True,
        )

    def _silence(self, *, was_sent_away: bool) -> NodeAwayError:
        """Return why there is no answer, as far as the connection tells."""
        node = f"Node {self._address}"
        if not self._connected:
            return NodeAwayError(
                f"{node} cannot be reached: is `trident node` running there, and may this machine "
                "connect to it?"
            )
        if not was_sent_away:
            return NodeAwayError(f"{node} is reached but does not answer: it may hang.")
        return NodeAwayError(
            f"{node} is reached but does not understand this server: both must have the same secret "
            "in TRIDENT_NODE_TOKEN, or none; or no `trident node` listens there.",
            for_good=True,
        )

    async def attend(self, hear: Hear, beside: Coroutine[Any, Any, NoReturn]) -> str:
        """Pass on what the node says, one after another, until the line is lost; return why it was.

        `beside` goes on as long as the line is there.
        """
        each = (self._hear_all(hear), self._lost(), self._watch(), beside)
        works = [asyncio.ensure_future(work) for work in each]
        try:
            done, _ = await asyncio.wait(works, return_when="FIRST_COMPLETED")
            return next(iter(done)).result()
        finally:
            await _end(*works)

    async def _hear_all(self, hear: Hear) -> str:
        while True:
            try:
                said, contents = await self._receive()
            except msgspec.MsgspecError as error:
                return f"Node {self._address} speaks nonsense: {error}."
            if isinstance(said, Bye):
                return f"Node {self._address} has let this server go: {said.reason}"
            if not isinstance(said, Beat):
                self._is_hearing = True
                await hear(said, contents)
                self._is_hearing = False

    async def _receive(self) -> tuple[FromNode, Sequence[bytes]]:
        payload, *contents = await self._socket.recv_multipart()
        self._heard_s = time.monotonic()
        return self._decoder.decode(payload), contents

    async def _lost(self) -> str:
        """Return when the connection is no more, or was refused."""
        while True:
            event = await recv_monitor_message(self._monitor)
            if event["event"] == zmq.EVENT_CONNECTED:
                self._connected = True
            else:
                return f"Node {self._address} has closed the connection."

    async def _watch(self) -> str:
        """Show that we live, and return when the node does not."""
        while True:
            self.send(Beat())
            slept_s = -time.monotonic()
            await asyncio.sleep(BEAT_S)
            slept_s += time.monotonic()
            silent_s = time.monotonic() - self._heard_s
            if self._is_stuck:
                return f"Node {self._address} takes no orders any more."
            if slept_s > LONG_SLEEP_S:  # it was us who did not listen
                self._heard_s = time.monotonic()
            elif silent_s > SILENCE_S and not self._is_hearing:
                return f"Node {self._address} gave no sign of life for {silent_s:.0f} s."

    def close(self) -> None:
        """Hear nothing more; what was said last still goes out for a moment. Idempotent."""
        if not self._socket.closed:
            self._socket.disable_monitor()
            self._socket.close(linger=_LINGER_MS)
        self._monitor.close(linger=0)


def sent_at_once(socket: zmq.asyncio.Socket, frames: Sequence[bytes]) -> bool:
    """Send frames without waiting; False if the other side is gone, or takes nothing any more."""
    sending = asyncio.ensure_future(socket.send_multipart(frames, flags=zmq.NOBLOCK))
    return sending.done() and sending.exception() is None


async def _end(*works: asyncio.Future[Any]) -> None:
    for work in works:
        work.cancel()
    await asyncio.gather(*works, return_exceptions=True)


async def inspect(address: str, secret: NodeSecret | None, question: Inspect) -> None:
    """Ask a node whether it could serve us.

    Raises:
        NodeAwayError: it could not, or it does not answer.
    """
    context = zmq.asyncio.Context()
    try:
        line = NodeLine(context, address, secret)
        try:
            await line.ask(question)
        finally:
            line.close()
    finally:
        await asyncio.to_thread(context.term)
