"""One device's place in the local executor: its worker process, and whether it still lives.

A worker shows that it lives by beats on a socket of their own, sent by a thread, so that a long
kernel is not taken for a hang; and that it works by answering what it was asked for.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import msgspec

from engine.executors.forking import Spawner, WorkerProcess
from engine.executors.mailbox import Mailbox
from engine.messages import Saving
from engine.types import DeviceId

BEAT_SUFFIX, LOAD_SUFFIX = "/beat", "/load"  # of the identities of a worker's other sockets
START_S = 120.0  # imports and the first beat
SILENCE_S = 20.0  # between two beats; they come every three seconds
STALL_S = 900.0  # between two answers or denoise steps while something is asked for on a socket
_SHUTDOWN_S = 3.0
_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
}
# glibc only. By default a worker gives back what a step frees and pays for fresh pages in the next:
# a tenth of a step of `motion` (docs/development.md). `engine.stages.heap` gives it back instead.
_ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
_SECRETS = (
    *("TRIDENT_API_KEYS", "TRIDENT_API_KEYS_FILE", "TRIDENT_ADMIN_KEY"),
    *("TRIDENT_NODE_TOKEN", "TRIDENT_NODE_TOKEN_FILE"),
)


class WorkerSettings(msgspec.Struct, frozen=True):
    """What every worker of an executor is started with."""

    endpoint: str
    handoff_folder: Path
    group_folder: Path
    threads: int
    saving: Saving | None = None


def environment(threads: int) -> dict[str, str]:
    """Return what worker processes inherit of this one's environment."""
    inherited = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    return {**_ALLOCATOR, **inherited, **_QUIET, "OMP_NUM_THREADS": str(threads)}


class WorkerSlot:
    """The process that serves a device now, and the calls that wait for it.

    Attributes:
        is_ready: whether the process and its loader have reported for work.
        memory_bytes: what the process has found; None until it reported.
        loader_is_ready: whether its loader has reported.
    """

    def __init__(self, device: DeviceId, settings: WorkerSettings, spawner: Spawner) -> None:
        """Begin without a process."""
        self._spawner = spawner
        self.device = device
        self.is_ready = self.loader_is_ready = False
        self.memory_bytes: int | None = None
        self.mailbox = Mailbox()
        self._settings = settings
        self._process: WorkerProcess | None = None
        self._incarnation = 0
        self._spawned_s = self._beat_s = 0.0
        self._answered_s = {"": 0.0, LOAD_SUFFIX: 0.0}  # by socket: a load is no sign of a step
        self._why_killed: str | None = None

    @property
    def identity(self) -> str:
        """Name on the socket; a new one per process, so that stale messages are recognised."""
        return f"{self.device}#{self._incarnation}"

    @property
    def process_id(self) -> int | None:
        """The live process, if there is one."""
        return None if self._process is None else self._process.pid

    async def spawn(self) -> None:
        """Start a process; raises OSError if the machine cannot."""
        self._process = await self._spawner.spawn(
            [
                *("--endpoint", self._settings.endpoint, "--identity", self.identity),
                *("--device", self.device.rpartition("/")[2]),
                *("--handoff-folder", str(self._settings.handoff_folder)),
                *("--group-folder", str(self._settings.group_folder)),
                *("--threads", str(self._settings.threads), *self._saving()),
            ]
        )
        self._spawned_s = time.monotonic()
        self.excuse_silence()

    def _saving(self) -> tuple[str, ...]:
        saving = self._settings.saving
        if saving is None:
            return ()
        return ("--save-every", str(saving.every_steps), str(saving.every_s))

    async def wait(self) -> str:
        """Wait for the process to end, fail what waits for it, and return why it ended."""
        assert self._process is not None
        code = await self._process.wait()
        self._process, self.is_ready = None, False
        self.memory_bytes, self.loader_is_ready = None, False
        self._incarnation += 1  # from here on its last words are stale
        reason = f"Worker of {self.device} ended with {_told(code)}."
        if self._why_killed is not None:
            reason = f"Worker of {self.device} was killed: {self._why_killed}."
            self._why_killed = None
        self.mailbox.lose_all(reason)
        return reason

    @property
    def lived_s(self) -> float:
        """Seconds since the last process was started."""
        return time.monotonic() - self._spawned_s

    def beat(self) -> None:
        """Note a sign of life."""
        self._beat_s = time.monotonic()

    def answered(self, socket: str) -> None:
        """Note an answer, or a finished denoise step, that came from one of the sockets."""
        self._answered_s[socket] = time.monotonic()

    def excuse_silence(self) -> None:
        """Start all waiting anew, because it was us who did not listen."""
        self._beat_s = time.monotonic()
        self._answered_s = dict.fromkeys(self._answered_s, self._beat_s)

    def why_hung(self) -> str | None:
        """Return what is wrong with a live process that does not answer; None if nothing is."""
        if self._process is None:
            return None
        now_s = time.monotonic()
        if now_s - self._beat_s > (SILENCE_S if self.is_ready else START_S):
            return f"no sign of life for {now_s - self._beat_s:.0f} s"
        for socket, answered_s in self._answered_s.items():
            if self.mailbox.is_waited_for_on(socket) and now_s - answered_s > STALL_S:
                return f"no progress for {now_s - answered_s:.0f} s"
        return None

    def kill(self, why: str) -> None:
        """End the process at once; its supervisor sees it and starts another."""
        if self._process is not None:
            self._why_killed = why
            self._process.kill()

    async def stop(self) -> None:
        """End the process for good, politely then firmly."""
        self.is_ready = False
        self.mailbox.lose_all(f"Worker of {self.device} was stopped.")
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        process.end()
        try:
            async with asyncio.timeout(_SHUTDOWN_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _told(code: int) -> str:
    """Return an exit code in words; who sent SIGKILL is often the kernel, for want of memory."""
    if code >= 0:
        return f"code {code}"
    name = signal.Signals(-code).name
    return f"{name} (the machine may be out of memory)" if name == "SIGKILL" else name
