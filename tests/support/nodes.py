"""Nodes for tests: an in-memory one, and a real `trident node` process on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from engine.executors.fake import HANDOFF_BYTES, FakeExecutor
from engine.executors.forking import NURSERY_MODULE, SHARED_VARIABLE
from engine.messages import StageReport
from engine.ports import DeviceListener
from engine.types import Assignment, DeviceId, DeviceInfo, HandoffRef, NodeId, TaskId
from tests.support.builders import MIB
from tests.support.server import free_port

START_S = 60.0


def devices_of(node: str, count: int) -> list[DeviceInfo]:
    return [DeviceInfo(DeviceId(f"{node}/fake:{i}"), node, 1024 * MIB) for i in range(count)]


class FakeNode(FakeExecutor):
    """A node whose devices and hand-offs exist only on the clock; it can die and come back."""

    def __init__(
        self, name: str, infos: Sequence[DeviceInfo], home: FakeExecutor, **options: Any
    ) -> None:
        super().__init__(infos, **options)
        self.name, self._home = name, home
        self.is_away = False  # out of reach so far
        self._waits_for: DeviceListener | None = None

    @property
    def is_whole(self) -> bool:
        return not self.is_away

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        return () if self.is_away else super().devices

    async def start(self, listener: DeviceListener) -> None:
        self._waits_for = listener
        if not self.is_away:
            await super().start(listener)

    async def appear(self) -> None:
        """Come into reach."""
        assert self._waits_for is not None
        self.is_away = False
        await super().start(self._waits_for)

    def _hand_off(self, name: TaskId) -> HandoffRef:
        if "/saved-" in name:
            return self._home.restore(name, NodeId(name), b"comes home")
        ref = HandoffRef(NodeId(name), f"{self.name}/{name}", HANDOFF_BYTES, host=self.name)
        self.alive[ref.path] = ref
        return ref

    async def run(self, assignment: Assignment) -> tuple[StageReport, ...]:
        return tuple(map(self._home_if_paused, await super().run(assignment)))

    def _home_if_paused(self, report: StageReport) -> StageReport:
        if not report.paused or report.output is None:
            return report
        self.release(report.output)
        latent = self._home.restore(report.task, report.output.node, b"comes home")
        return msgspec.structs.replace(report, output=latent)

    def holds(self, ref: HandoffRef) -> bool:
        return ref.host == self.name and ref.path in self.alive

    def release(self, ref: HandoffRef) -> None:
        if self.holds(ref):
            super().release(ref)

    def die(self) -> None:
        """Lose everything at once; the devices come back after a while, empty."""
        self.alive.clear()
        for device in self.devices:
            self.kill(device)


class NodeProcess:
    """A `trident node` that can be killed and started again at the same address."""

    def __init__(
        self, models: Sequence[Path], log: Path, flags: Sequence[str], env: Mapping[str, str]
    ) -> None:
        self.port, handoffs = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        command = [str(Path(sys.executable).parent / "trident"), "node", "--listen", self.address]
        command += ["--handoff-port", str(handoffs), "--threads", "1", *flags]
        for model in models:
            command += ["--model", str(model)]
        self._command, self._log, self._env = command, log, {**os.environ, **env}
        self.start()

    def start(self) -> None:
        self._log.write_bytes(b"")
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, env=self._env, stderr=log)

    def wait_listening(self) -> None:
        until_s = time.monotonic() + START_S
        while "waiting for a server" not in self.log:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < until_s, self.log
            time.sleep(0.02)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(30)


@contextmanager
def shared_nursery(folder: Path) -> Iterator[None]:
    """Let every engine of the block fork its workers from one process, agents' engines too."""
    path = folder / "nursery.sock"
    command = [sys.executable, "-P", "-m", NURSERY_MODULE, "--socket", str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as nursery:
        until_s = time.monotonic() + START_S
        while not path.exists():
            assert nursery.poll() is None
            assert time.monotonic() < until_s
            time.sleep(0.02)
        os.environ[SHARED_VARIABLE] = str(path)
        try:
            yield
        finally:
            del os.environ[SHARED_VARIABLE]
            nursery.kill()


@contextmanager
def running_nodes(
    count: int,
    models: Sequence[Path],
    folder: Path,
    *,
    flags: Sequence[str] = ("--devices", "1"),
    env: Mapping[str, str] | None = None,
) -> Iterator[list[NodeProcess]]:
    nodes = [NodeProcess(models, folder / f"node-{i}.log", flags, env or {}) for i in range(count)]
    try:
        for node in nodes:
            node.wait_listening()
        yield nodes
    finally:
        for node in nodes:
            node.stop()
