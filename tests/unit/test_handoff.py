"""The hand-off folder: accounting, deletion, and sweeping after a killed controller."""

from __future__ import annotations

import errno
import fcntl
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from engine.errors import LedgerError
from engine.handoff import HandoffStore, PrivateFolder, handoff_path, sweep_stale
from engine.types import HandoffRef, NodeId, TaskId


def written(store: HandoffStore, task: str) -> HandoffRef:
    path = handoff_path(store.folder, TaskId(task))
    path.write_bytes(b"12345")
    return HandoffRef(NodeId("encode"), str(path), 5)


def test_a_hand_off_is_deleted_when_released_and_only_once(tmp_path: Path) -> None:
    store = HandoffStore(tmp_path / "handoff")
    ref = written(store, "r/encode/1")
    store.adopt(ref)
    store.check_integrity()
    assert store.used_bytes == 5
    store.release(ref)
    assert not Path(ref.path).exists()
    with pytest.raises(LedgerError, match="released twice"):
        store.release(ref)


def test_a_lost_file_is_noticed_by_the_audit(tmp_path: Path) -> None:
    store = HandoffStore(tmp_path / "handoff")
    ref = written(store, "r/encode/1")
    store.adopt(ref)
    Path(ref.path).unlink()
    with pytest.raises(LedgerError, match="should have 5 bytes"):
        store.check_integrity()


def test_hostile_ids_cannot_leave_the_folder(tmp_path: Path) -> None:
    store = HandoffStore(tmp_path / "handoff")
    path = handoff_path(store.folder, TaskId("../../etc/passwd/x/1"))
    assert path.parent == store.folder


def test_what_finds_no_room_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:2])
        raise OSError(errno.ENOSPC, "No space left on device")

    store = HandoffStore(tmp_path / "handoff")
    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(OSError, match="No space left"):
        store.restore(TaskId("r1/encode/kept"), NodeId("encode"), b"0123")
    assert list(store.folder.iterdir()) == []


def test_closing_deletes_everything(tmp_path: Path) -> None:
    store = HandoffStore(tmp_path / "handoff")
    store.adopt(written(store, "a"))
    store.close()
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_folders_of_dead_controllers_are_swept_and_those_of_living_ones_kept(
    tmp_path: Path,
) -> None:
    code = (
        "import os, sys, pathlib; from engine.handoff import PrivateFolder;"
        "PrivateFolder(pathlib.Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    living = PrivateFolder(tmp_path)
    sweep_stale(tmp_path)
    assert list(tmp_path.iterdir()) == [living.path]
    living.close()
    living.close()
    assert list(tmp_path.iterdir()) == []


def test_no_two_tasks_share_a_file(tmp_path: Path) -> None:
    names = ["a:b", "a_b", "a/b", "a", "A"]
    assert len({handoff_path(tmp_path, TaskId(name)) for name in names}) == len(names)


def test_a_folder_that_another_engine_sweeps_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = tempfile.mkdtemp, list[str]()

    def make_and_lose_once(**where: Any) -> str:
        made.append(make(**where))
        if len(made) == 1:
            sweep_stale(tmp_path)
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", make_and_lose_once)
    folder = PrivateFolder(tmp_path)
    sweep_stale(tmp_path)
    assert folder.path.is_dir()
    assert list(tmp_path.iterdir()) == [folder.path]
    folder.close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_whose_lock_a_sweep_takes_and_deletes_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep may be over between the opening of the lock and its taking."""
    take, opened = fcntl.flock, list[int]()

    def lose_once(descriptor: int, how: int) -> None:
        opened.append(descriptor)
        if len(opened) == 1:
            [folder] = tmp_path.iterdir()
            shutil.rmtree(folder)
        take(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", lose_once)
    folder = PrivateFolder(tmp_path)
    assert folder.path.is_dir()
    assert (folder.path / "lock").exists()
    folder.close()
