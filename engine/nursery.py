"""A process that has imported all that a worker needs, and forks workers from itself.

Importing torch and diffusers takes seconds of a core; a fork takes milliseconds, and the forks
share the memory of what was imported. It computes nothing and starts no thread, so that a fork
finds all locks open. Only for CPU devices: a CUDA context does not survive a fork.

Executors connect to its socket and send JSON, one order a line: `{"fork": [arguments]}`,
`{"end": pid}` (politely) or `{"kill": pid}`. It answers `{"born": pid}` in the order of forks, or
`{"unborn": why}`, and `{"died": pid, "code": n}`. It ends when its standard input ends because its owner died. A worker's
standard input ends with the executor's connection, which is how that worker hears of it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import selectors
import signal
import socket
import traceback
from pathlib import Path
from typing import NoReturn

from engine import worker

NAME = b"trident-worker"  # of the processes, for people who list them
_CHUNK = 1 << 16


class _Client:
    """One executor: its connection, and its workers with what keeps their standard input open."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.lives: dict[int, int] = {}
        self._rest = b""

    def orders(self) -> list[dict[str, object]] | None:
        """Return the orders that have come; None if the connection has ended."""
        try:
            received = self.connection.recv(_CHUNK)
        except ConnectionError:
            received = b""
        if not received:
            return None
        *lines, self._rest = (self._rest + received).split(b"\n")
        return [json.loads(line) for line in lines]

    def tell(self, **report: object) -> None:
        """Send one report; an executor that has gone needs none."""
        try:
            self.connection.sendall(json.dumps(report).encode() + b"\n")
        except OSError:
            return

    def end(self, pid: int) -> None:
        """Let a worker's standard input end."""
        if (life := self.lives.pop(pid, None)) is not None:
            os.close(life)


class Nursery:
    """Serves executors until its owner dies."""

    def __init__(self, listening: socket.socket) -> None:
        """Listen to executors, to the owner on standard input, and to children that die."""
        self._selector = selectors.DefaultSelector()
        self._listening = listening
        self._clients: dict[int, _Client] = {}
        self._parents: dict[int, _Client] = {}
        self._wakeup, wake = socket.socketpair()
        for end in (self._wakeup, wake):
            end.settimeout(0)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        self._wake = wake
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for watched in (0, self._wakeup, listening):
            self._selector.register(watched, selectors.EVENT_READ)

    def serve(self) -> None:
        """Obey until standard input ends."""
        while True:
            for key, _events in self._selector.select():
                if key.fd == 0:
                    return
                self._attend(key.fd)

    def _attend(self, ready: int) -> None:
        if ready == self._wakeup.fileno():
            self._wakeup.recv(_CHUNK)
            self._bury()
        elif ready == self._listening.fileno():
            connection, _address = self._listening.accept()
            self._clients[connection.fileno()] = _Client(connection)
            self._selector.register(connection, selectors.EVENT_READ)
        elif (client := self._clients.get(ready)) is not None:
            self._obey(client)

    def _obey(self, client: _Client) -> None:
        orders = client.orders()
        if orders is None:
            self._dismiss(client)
            return
        for order in orders:
            match order:
                case {"fork": list(arguments)}:
                    self._fork(client, [str(argument) for argument in arguments])
                case {"end": int(pid)}:
                    client.end(pid)
                case {"kill": int(pid)} if self._parents.get(pid) is client:
                    os.kill(pid, signal.SIGKILL)
                case _:
                    pass  # a worker that has died meanwhile

    def _dismiss(self, client: _Client) -> None:
        """Let all workers of an executor end that has gone."""
        self._selector.unregister(client.connection)
        del self._clients[client.connection.fileno()]
        client.connection.close()
        for pid in list(client.lives):
            client.end(pid)

    def _fork(self, client: _Client, arguments: list[str]) -> None:
        pipe: tuple[int, ...] = ()
        try:
            pipe = standard_input, life = os.pipe()
            pid = os.fork()
        except OSError as error:  # no memory or descriptors just now; those who live go on
            for end in pipe:
                os.close(end)
            client.tell(unborn=str(error))
            return
        if pid == 0:
            self._become_worker(standard_input, life, arguments)
        os.close(standard_input)
        client.lives[pid], self._parents[pid] = life, client
        client.tell(born=pid)

    def _become_worker(self, standard_input: int, life: int, arguments: list[str]) -> NoReturn:
        """Drop everything of the nursery, then work to the end of this process."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._selector.close()
            lives = [held for client in self._clients.values() for held in client.lives.values()]
            os.dup2(standard_input, 0)
            for held in (standard_input, life, *lives):
                os.close(held)
            for client in self._clients.values():
                client.connection.close()
            for end in (self._listening, self._wakeup, self._wake):
                end.close()
            _rename()
            worker.main(arguments)
            code = 0
        except BaseException:  # noqa: BLE001 - process boundary: told on standard error
            traceback.print_exc()
        finally:
            os._exit(code)

    def _bury(self) -> None:
        """Report every child that has died."""
        while self._parents:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            client = self._parents.pop(pid)
            client.end(pid)
            client.tell(died=pid, code=os.waitstatus_to_exitcode(status))


def _rename() -> None:
    """Let lists of processes tell workers from the nursery, where the system can."""
    path = Path("/proc/self/comm")
    if path.exists():
        path.write_bytes(NAME)


def listen_at(path: str) -> socket.socket:
    """Listen at a path, which is there only once somebody can connect."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"{path}.new")
    listening.listen()
    Path(f"{path}.new").rename(path)
    return listening


def main() -> None:
    """Import, listen at the path that is given, and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", required=True)
    path = parser.parse_args().socket
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach whole groups; we obey stdin
        signal.signal(number, signal.SIG_IGN)
    listening = listen_at(path)
    gc.collect()
    gc.freeze()  # forks share these pages as long as no collection touches them
    Nursery(listening).serve()
    os._exit(0)


if __name__ == "__main__":
    main()
