"""Device copies made from host copies: the same tensors, freed when unloaded, stoppable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn

from engine import open_pipeline
from engine.host_store import booked_bytes
from engine.messages import HostCopy, LaunchDone, LoadSource, LoadStage, StageReport
from engine.stages import shelf as shelves
from engine.stages.flat import LayoutMismatchError, bind, layout_of, on_meta, pack
from engine.stages.host_copy import copy_to_device
from engine.stages.registry import load_parts
from engine.stages.shelf import StageShelf
from engine.types import StageKind, TaskId
from engine.worker import without_peaks

CPU = torch.device("cpu")


def tensors(modules: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    named = {
        f"{key}.{name}": tensor
        for key, module in modules.items()
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    }
    assert named
    return named


def order(folder: Path, kind: StageKind, host: HostCopy | None) -> LoadStage:
    spec = open_pipeline(folder)
    return LoadStage(spec.stage(kind), spec.folder, spec.family, host)


@pytest.mark.parametrize("family", ["flux", "animatediff"])
@pytest.mark.parametrize("kind", list(StageKind))
def test_a_load_from_the_host_copy_gives_the_tensors_that_the_files_hold(
    model_folder: Callable[[str], Path], tmp_path: Path, family: str, kind: StageKind
) -> None:
    spec = open_pipeline(model_folder(family))
    path, limit = str(tmp_path / "copy"), booked_bytes(spec.weight_bytes[kind])
    expected = tensors(load_parts(Path(spec.folder), spec.family, kind, torch.float32).modules)
    cold, warm = StageShelf(CPU), StageShelf(CPU)
    filled = cold.load(order(Path(spec.folder), kind, HostCopy(path, False, limit)))  # noqa: FBT003
    assert filled.source is LoadSource.FILE
    assert 0 < filled.filled_bytes <= limit
    again = order(Path(spec.folder), kind, HostCopy(path, True, filled.filled_bytes))  # noqa: FBT003
    for shelf in (cold, warm, warm):  # the third time from a kept sketch
        if shelf is warm:
            shelf.unload(again.stage)
            assert shelf.load(again).source is LoadSource.HOST
        found = tensors(shelf._sketches[again.stage].modules)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name
            assert found[name].dtype == tensor.dtype
            assert not found[name].requires_grad
            assert found[name].data_ptr() % 64 == tensor.data_ptr() % 64, name


def test_weights_that_move_beside_a_launch_are_not_taken_for_its_memory(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    shelf, moved = StageShelf(CPU), list[bool]()

    def look() -> bool:
        moved.append(shelf.has_moved(since=0))
        return False

    assert not shelf.has_moved(since=0)
    host = HostCopy(str(tmp_path / "c"), is_filled=False, size_bytes=1 << 30)
    wanted = order(model_folder("sd"), StageKind.DECODE, host)
    shelf.load(wanted, look)
    assert moved
    assert all(moved)
    assert (shelf.moves, shelf.has_moved(since=1)) == (1, False)
    shelf.unload(wanted.stage)
    assert shelf.has_moved(since=1)
    report = StageReport(
        task=TaskId("t"), kind=StageKind.DECODE, receive_s=0.0, run_s=1.0, send_s=0.0,
        peak_memory_bytes=1 << 30,
    )  # fmt: skip
    told = without_peaks(LaunchDone(TaskId("t"), (report,)))
    assert isinstance(told, LaunchDone)
    assert told.reports == (msgspec.structs.replace(report, peak_memory_bytes=0),)


def test_unloading_frees_the_device_copy(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    shelf = StageShelf(CPU)
    spec = open_pipeline(model_folder("sd"))
    host = HostCopy(str(tmp_path / "c"), is_filled=False, size_bytes=1 << 30)
    shelf.load(order(Path(spec.folder), StageKind.DECODE, host))
    parts = shelf._sketches[spec.stage(StageKind.DECODE)]
    shelf.unload(spec.stage(StageKind.DECODE))
    assert all(tensor.device.type == "meta" for tensor in tensors(parts.modules).values())


def test_a_peer_is_copied_where_it_can_be_reached_and_the_host_copy_where_not(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lent: dict[bytes, list[torch.Tensor]] = {}

    def lend(segments: list[torch.Tensor]) -> bytes:
        lent[b"lent"] = segments
        return b"lent"

    def reach(key: bytes) -> list[torch.Tensor]:
        if key not in lent:
            raise RuntimeError("no such device")
        return lent[key]

    monkeypatch.setattr(shelves, "lend_segments", lend)
    monkeypatch.setattr(shelves, "open_segments", reach)
    holder, borrower = StageShelf(CPU), StageShelf(CPU)
    folder, path = model_folder("sd"), str(tmp_path / "c")
    wanted = order(folder, StageKind.DECODE, HostCopy(path, is_filled=False, size_bytes=1 << 30))
    assert borrower.lend(wanted.stage) == b""
    filled = holder.load(wanted).filled_bytes
    full = HostCopy(path, is_filled=True, size_bytes=filled)
    for peer, source in (
        (holder.lend(wanted.stage), LoadSource.PEER),
        (b"of a dead worker", LoadSource.HOST),
    ):
        again = msgspec.structs.replace(wanted, host=full, peer=peer)
        assert borrower.load(again).source is source
        mine, theirs = (tensors(s._sketches[wanted.stage].modules) for s in (borrower, holder))
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
        first = next(iter(theirs))
        assert mine[first].data_ptr() != theirs[first].data_ptr()
        borrower.unload(wanted.stage)


def test_without_room_for_a_host_copy_a_stage_is_loaded_all_the_same(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    shelf = StageShelf(CPU)
    for host in (None, HostCopy(str(tmp_path / "c"), is_filled=False, size_bytes=1000)):
        wanted = order(model_folder("sd"), StageKind.DECODE, host)
        assert shelf.load(wanted) == (LoadSource.FILE, 0, False)
        shelf.unload(wanted.stage)
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_load_leaves_nothing_on_the_device_but_its_host_copy(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelves, "copy_to_device", in_chunks_of(1000))
    shelf, polls = StageShelf(CPU), iter([False, False, True])
    host = HostCopy(str(tmp_path / "c"), is_filled=False, size_bytes=1 << 30)
    wanted = order(model_folder("sd"), StageKind.DECODE, host)
    loaded = shelf.load(wanted, lambda: next(polls))
    assert loaded.is_stopped
    assert loaded.filled_bytes > 0
    assert wanted.stage not in shelf.stages


def in_chunks_of(size: int) -> Callable[..., list[torch.Tensor]]:
    def copy(
        segments: list[torch.Tensor], device: torch.device, stopped: Callable[[], bool]
    ) -> list[torch.Tensor]:
        return copy_to_device(segments, device, stopped, chunk_bytes=size)

    return copy


def test_on_a_cpu_tensors_begin_where_they_did_within_a_cache_line() -> None:
    module = nn.Linear(3, 3)
    memory = torch.empty(1024)
    for shift, name in ((3, "weight"), (21, "bias")):  # as in a file that is mapped
        start = (64 - memory.data_ptr() % 64) // 4 % 16 + shift
        place = memory.narrow(0, start + 100 * shift // 21, getattr(module, name).numel())
        setattr(module, name, nn.Parameter(place.view_as(getattr(module, name))))
    rests = [parameter.data_ptr() % 64 for parameter in module.parameters()]
    assert any(rests)
    layout = layout_of({"m": module}, for_cpu=True)
    segments = [torch.empty(size, dtype=torch.uint8) for size in layout.segments]
    pack({"m": module}, layout, segments)
    bind({"m": module}, layout, copy_to_device(segments, CPU, lambda: False))
    assert [parameter.data_ptr() % 64 for parameter in module.parameters()] == rests


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("none", torch.empty(0))


def test_tied_tensors_stay_tied_and_segments_stay_small() -> None:
    source, target = Tied(), Tied()
    expected = source.embed.weight.detach().clone()
    layout = layout_of({"m": source}, segment_bytes=256)
    assert layout.segments == (256, 256)  # 7 x 5 floats once, the counter
    segments = [torch.empty(size, dtype=torch.uint8) for size in layout.segments]
    pack({"m": source}, layout, segments)
    bind({"m": target}, layout, copy_to_device(segments, CPU, lambda: False, chunk_bytes=100))
    assert target.head.weight is target.embed.weight
    assert torch.equal(target.embed.weight, expected)
    assert int(target.count) == 3
    bind({"m": target}, layout, on_meta(layout))
    assert target.embed.weight.device.type == "meta"


def test_modules_of_another_kind_are_not_bound() -> None:
    layout = layout_of({"m": Tied()})
    other = nn.Linear(5, 7)
    with pytest.raises(LayoutMismatchError, match="tensors differ"):
        bind({"m": other}, layout, on_meta(layout))
    assert other.weight.device.type == "cpu"
