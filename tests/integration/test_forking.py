"""The nursery: workers are born, told of when they die, and outlive a fork that fails."""

from __future__ import annotations

import resource
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from engine.executors.forking import SHARED_VARIABLE, Forker
from engine.executors.slot import environment
from engine.nursery import listen_at


@pytest_asyncio.fixture
async def forker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Forker]:
    """One with a nursery of its own."""
    monkeypatch.delenv(SHARED_VARIABLE, raising=False)
    forker = Forker(tmp_path, environment(threads=1))
    try:
        yield forker
    finally:
        await forker.close()


async def test_a_fork_that_fails_costs_no_worker_that_lives(forker: Forker, tmp_path: Path) -> None:
    folders = ["--handoff-folder", str(tmp_path), "--group-folder", str(tmp_path)]
    line = ["--endpoint", f"ipc://{tmp_path}/nobody.sock", "--identity", "cpu:0#0"]
    arguments = [*line, "--device", "cpu:0", "--threads", "1", *folders]
    lives = await forker.spawn(arguments)
    assert forker._process is not None
    nursery = forker._process.pid
    before = resource.prlimit(nursery, resource.RLIMIT_NOFILE)
    resource.prlimit(nursery, resource.RLIMIT_NOFILE, (3, before[1]))
    with pytest.raises(OSError, match=r"could not be forked: .* Too many open files"):
        await forker.spawn(arguments)
    resource.prlimit(nursery, resource.RLIMIT_NOFILE, before)
    second = await forker.spawn(arguments)
    assert (lives.returncode, second.returncode) == (None, None)
    for worker in (lives, second):
        worker.end()
        await worker.wait()


def test_a_nursery_is_not_to_be_seen_before_it_can_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, listen = tmp_path / "nursery.sock", socket.socket.listen

    def late(listening: socket.socket) -> None:
        assert not path.exists()
        listen(listening)

    monkeypatch.setattr(socket.socket, "listen", late)
    with listen_at(str(path)), socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))
        assert list(tmp_path.iterdir()) == [path]
