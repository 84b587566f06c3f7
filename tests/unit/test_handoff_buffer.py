"""The bound on hand-offs in shared memory, whoever writes and whoever dies."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.handoff import HandoffStore
from engine.handoff_buffer import HandoffBuffer, handoff_name
from engine.types import HandoffRef, NodeId, TaskId


@pytest.fixture
def store(tmp_path: Path) -> HandoffStore:
    (tmp_path / "disk").mkdir()
    return HandoffStore(tmp_path / "shm", 1000, tmp_path / "disk")


def write(store: HandoffStore, task: str, size: int) -> HandoffRef:
    """Write as a worker process would, with a buffer of its own."""
    with HandoffBuffer(store.folder).place(TaskId(task), size) as path:
        path.write_bytes(bytes(size))
    ref = HandoffRef(NodeId("n"), str(path), size)
    store.adopt(ref)
    return ref


def test_what_exceeds_the_bound_goes_to_disk_and_is_freed_from_there(
    store: HandoffStore, tmp_path: Path
) -> None:
    first, second = write(store, "a", 700), write(store, "b", 400)
    assert Path(first.path).parent == store.folder
    assert Path(second.path).parent == tmp_path / "disk"
    store.check_integrity()
    store.release(second)
    store.release(first)
    assert list(store.folder.iterdir()) == list((tmp_path / "disk").iterdir()) == []
    assert Path(write(store, "c", 1000).path).parent == store.folder


def test_writers_at_the_same_time_share_the_bound(store: HandoffStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        refs = list(pool.map(lambda n: write(store, f"t{n}", 150), range(40)))
    in_memory = [ref for ref in refs if Path(ref.path).parent == store.folder]
    assert len(in_memory) == 6
    store.check_integrity()


def test_a_hand_off_that_a_reader_takes_away_meanwhile_disturbs_no_writer(
    store: HandoffStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, listed = write(store, "read", 700), os.scandir

    @contextmanager
    def listed_then_read(folder: Path) -> Any:
        with listed(folder) as entries:
            found = list(entries)
        store.release(read)
        yield iter(found)

    monkeypatch.setattr(os, "scandir", listed_then_read)
    with HandoffBuffer(store.folder).place(TaskId("next"), 900) as path:
        assert path.parent == store.folder


def test_what_is_being_written_counts_before_it_is_there(store: HandoffStore) -> None:
    buffer = HandoffBuffer(store.folder)
    with buffer.place(TaskId("a"), 800), buffer.place(TaskId("b"), 300) as second:
        assert second.parent != store.folder


def test_a_writer_that_died_half_way_leaves_nothing_once_its_task_is_discarded(
    store: HandoffStore,
) -> None:
    path, reserved = HandoffBuffer(store.folder)._reserve(handoff_name(TaskId("a")), 900)
    path.write_bytes(b"half")
    assert reserved.exists()
    store.discard(TaskId("a"))
    assert list(store.folder.iterdir()) == []


def test_a_reader_finds_what_spilled_where_it_was_not_expected(store: HandoffStore) -> None:
    spilled = write(store, "a", 2000)
    expected = store.folder / handoff_name(TaskId("a"))
    assert HandoffBuffer(store.folder).find(str(expected)) == Path(spilled.path)
