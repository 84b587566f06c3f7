"""Worker processes as an executor sees them: forked by a nursery, or started one by one.

A nursery (`engine.nursery`) is started by dotted name, so that this process never imports torch.
`TRIDENT_NURSERY` names the socket of one that runs already; a test session shares it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

NURSERY_MODULE: Final = "engine.nursery"
WORKER_MODULE: Final = "engine.worker"
SHARED_VARIABLE: Final = "TRIDENT_NURSERY"
_IMPORTS_S: Final = 300.0
_GONE: Final = -1  # exit code of a worker whose nursery died


class WorkerProcess(Protocol):
    """A live worker process."""

    @property
    def pid(self) -> int:
        """Its id."""
        ...

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it lives."""
        ...

    async def wait(self) -> int:
        """Return its exit code once it has ended."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...

    def end(self) -> None:
        """Let its standard input end, at which it leaves."""
        ...


class Spawner(Protocol):
    """Starts worker processes."""

    async def spawn(self, arguments: Sequence[str]) -> WorkerProcess:
        """Start one; raises OSError if the machine cannot."""
        ...

    async def close(self) -> None:
        """Keep nothing; workers that still live hear of it."""
        ...


class StartedProcess:
    """A process of its own, with all imports still to do."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        """Take a process whose standard input is a pipe."""
        self._process, self.pid = process, process.pid

    @property
    def returncode(self) -> int | None:
        """How it ended."""
        return self._process.returncode

    async def wait(self) -> int:
        """Return its exit code."""
        return await self._process.wait()

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        with suppress(ProcessLookupError):
            self._process.kill()

    def end(self) -> None:
        """Close its standard input."""
        if self._process.stdin is not None:
            self._process.stdin.close()


class Starter:
    """Starts every worker by itself: for GPUs, whose contexts do not survive a fork."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Start them with this environment."""
        self._environment = dict(environment)

    async def spawn(self, arguments: Sequence[str]) -> WorkerProcess:
        """Start a Python process."""
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-P",
                "-m",
                WORKER_MODULE,
                *arguments,
            ),  # -P: no `engine` of the user's folder
            stdin=asyncio.subprocess.PIPE,  # never written: its end tells the worker that we died
            env=self._environment,
        )
        return StartedProcess(process)

    async def close(self) -> None:
        """Keep nothing."""


class ForkedProcess:
    """A fork of a nursery, which reports its death."""

    def __init__(self, pid: int, nursery: asyncio.StreamWriter) -> None:
        """Know whom to ask."""
        self.pid = pid
        self.returncode: int | None = None
        self._nursery, self._ended = nursery, asyncio.Event()

    def note_end(self, code: int) -> None:
        """Note how it ended."""
        self.returncode = code
        self._ended.set()

    async def wait(self) -> int:
        """Return the exit code."""
        await self._ended.wait()
        assert self.returncode is not None  # set before the event
        return self.returncode

    def kill(self) -> None:
        """Have it killed; the nursery knows whether the id is still this process's."""
        self._order(kill=self.pid)

    def end(self) -> None:
        """Have its standard input closed."""
        self._order(end=self.pid)

    def _order(self, **order: int) -> None:
        if self.returncode is None and not self._nursery.is_closing():
            self._nursery.write(json.dumps(order).encode() + b"\n")


class Forker:
    """Forks workers from a nursery, which it starts when the first one is wanted.

    A nursery that died takes its workers with it; the next worker gets a new one.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        """Keep the nursery's socket in a folder that is private to this process."""
        self._path, self._environment = folder / "nursery.sock", dict(environment)
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._born: deque[asyncio.Future[ForkedProcess]] = deque()
        self._alive: dict[int, ForkedProcess] = {}
        self._starting = asyncio.Lock()

    async def spawn(self, arguments: Sequence[str]) -> WorkerProcess:
        """Fork one."""
        async with self._starting:
            if self._writer is None:
                await self._connect()
        writer = self._writer
        if writer is None:
            raise ConnectionResetError("The process that forks workers died.")
        born: asyncio.Future[ForkedProcess] = asyncio.get_running_loop().create_future()
        self._born.append(born)
        writer.write(json.dumps({"fork": list(arguments)}).encode() + b"\n")
        return await born

    async def _connect(self) -> None:
        shared = os.environ.get(SHARED_VARIABLE)
        if not shared:
            await self._start()
        reader, self._writer = await asyncio.open_unix_connection(shared or str(self._path))
        self._reading = asyncio.create_task(self._read(reader, self._writer))

    async def _start(self) -> None:
        """Start a nursery, and wait until it has imported everything and listens."""
        self._path.unlink(missing_ok=True)
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", NURSERY_MODULE, "--socket", str(self._path)),
            stdin=asyncio.subprocess.PIPE,  # never written: its end tells it that we died
            env={**self._environment, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        async with asyncio.timeout(_IMPORTS_S):
            while not self._path.exists():
                if process.returncode is not None:
                    raise ConnectionResetError("The process that forks workers cannot start.")
                await asyncio.sleep(0.02)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hear of births and deaths until the nursery dies."""
        try:
            while line := await reader.readline():
                match json.loads(line):
                    case {"born": int(pid)}:
                        self._alive[pid] = child = ForkedProcess(pid, writer)
                        if not (born := self._born.popleft()).done():
                            born.set_result(child)
                        else:
                            child.end()  # nobody waits for it any more
                    case {"unborn": str(why)}:
                        if not (born := self._born.popleft()).done():
                            born.set_exception(OSError(f"A worker could not be forked: {why}."))
                    case {"died": int(pid), "code": int(code)}:
                        self._alive.pop(pid).note_end(code)
        finally:
            self._writer = None
            writer.close()
            for child in self._alive.values():
                child.note_end(_GONE)
            self._alive.clear()
            while self._born:
                if not (born := self._born.popleft()).done():
                    born.set_exception(ConnectionResetError("The process that forks workers died."))

    async def close(self) -> None:
        """Let the connection and a nursery of our own end."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()  # it may be importing still, and hears nothing then
            await self._process.wait()
