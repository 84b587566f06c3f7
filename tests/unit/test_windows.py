"""Hand-offs that lie in a window beside their file; the twin of a device's memory is a shared file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.messages import LaunchDone, RunStage
from engine.stages.base import Job, StageResult
from engine.stages.groups import Groups
from engine.stages.running import Said, TaskRunner
from engine.stages.team import Team
from engine.stages.transport import FileTransport
from engine.stages.windows import Window, Windows
from engine.types import HandoffRef, NodeId, StageKey, StageKind, StageTask, TaskId
from tests.support.builders import MODEL, a_request

CPU, NODE = torch.device("cpu"), NodeId("diffuse-0")
SIZE_BYTES = 4096


class Device:
    """A process with a window of its own and a transport."""

    def __init__(self, folder: Path, name: str, *, size_bytes: int = SIZE_BYTES) -> None:
        memory = folder / f"{name}.memory"
        self.opened: list[bytes] = []
        self.reachable = True
        self.window = Window(
            folder / "windows" / name, mapped(memory, size_bytes), lambda _: str(memory).encode()
        )
        handoff = folder / "handoff"
        handoff.mkdir(exist_ok=True)
        windows = Windows(CPU, self._open, self.window)
        self.transport = FileTransport(handoff, CPU, windows=windows)

    def _open(self, lent: bytes) -> Tensor:
        self.opened.append(lent)
        if not self.reachable:
            raise RuntimeError("peer access is not supported between these two devices")
        path = Path(lent.decode())
        return mapped(path, path.stat().st_size)

    def put(self, task: str, **tensors: Tensor) -> HandoffRef:
        ref = self.transport.put(NODE, TaskId(task), tensors, near=True)
        self.transport.put(NODE, TaskId("other"), {})  # the latest is handed on without either
        return ref

    def die(self) -> None:
        """Lose the window, as SIGKILL would: its lock goes and its memory is somebody else's."""
        self.window.close()
        self.window.memory.fill_(77)


def mapped(path: Path, size_bytes: int) -> Tensor:
    return torch.from_file(str(path), shared=True, size=size_bytes, dtype=torch.uint8)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Callable[[str], Device]]:
    made: list[Device] = []

    def make(name: str) -> Device:
        made.append(Device(tmp_path, name))
        return made[-1]

    yield make
    for one in made:
        one.window.check_integrity()


def only_in_window(device: Device, value: float) -> None:
    """Let the window say something else than the file, so that it shows which one was read."""
    device.window.memory.view(torch.float32).fill_(value)


def test_a_neighbour_reads_the_window_and_not_the_file(device: Callable[[str], Device]) -> None:
    maker, taker = device("a"), device("b")
    ref = maker.put("t", latents=torch.ones(2, 3))
    assert torch.equal(taker.transport.get(ref)["latents"], torch.ones(2, 3))
    only_in_window(maker, 5.0)
    for _ in range(2):
        assert torch.equal(taker.transport.get(ref)["latents"], torch.full((2, 3), 5.0))
    assert len(taker.opened) == 1  # once, however much is read
    assert torch.equal(maker.transport.get(ref)["latents"], torch.full((2, 3), 5.0))
    assert maker.opened == []


def test_all_kinds_of_tensors_come_back_as_they_were_and_only_those_asked_for(
    device: Callable[[str], Device],
) -> None:
    maker, taker = device("a"), device("b")
    tensors = {
        "half": torch.randn(3, 5).to(torch.bfloat16),
        "affine": torch.tensor([0.5, 2.0], dtype=torch.float64),
        "mask": torch.tensor([True, False]),
        "steps": torch.tensor(7),
        "none": torch.empty(0, 4),
        "turned": torch.randn(4, 6).t(),
    }
    ref = maker.put("t", **tensors)
    found = taker.transport.get(ref)
    assert taker.opened
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert taker.transport.get(ref, ["mask"]).keys() == {"mask"}


def test_what_a_reader_has_is_its_own(device: Callable[[str], Device]) -> None:
    maker, taker = device("a"), device("b")
    found = taker.transport.get(maker.put("t", latents=torch.ones(4)))["latents"]
    only_in_window(maker, 5.0)
    assert torch.equal(found, torch.ones(4))


def test_what_finds_no_room_is_read_from_its_file(device: Callable[[str], Device]) -> None:
    maker, taker = device("a"), device("b")
    large, small = torch.arange(900.0), torch.arange(200.0)  # 3,600 and 800 bytes of 4,096
    kept, spilled = maker.put("kept", latents=large), maker.put("spilled", latents=small)
    only_in_window(maker, 5.0)
    assert torch.equal(taker.transport.get(spilled)["latents"], small)
    assert torch.equal(taker.transport.get(kept)["latents"], torch.full((900,), 5.0))


def test_embeddings_which_are_kept_across_requests_take_no_room(
    device: Callable[[str], Device],
) -> None:
    maker, taker = device("a"), device("b")
    ref = maker.transport.put(NodeId("encode"), TaskId("t"), {"prompt_embeds": torch.ones(4)})
    maker.put("latest")
    only_in_window(maker, 5.0)
    assert torch.equal(taker.transport.get(ref)["prompt_embeds"], torch.ones(4))
    assert taker.opened == []


class Making:
    """A stage that makes something."""

    def run(self, jobs: Sequence[Job], _team: Team) -> list[StageResult]:
        return [StageResult({"made": torch.ones(4)}) for _job in jobs]


class NoOrders:
    def hear(self, _launch: TaskId, _task: TaskId) -> Said:
        return Said.NOTHING


@pytest.mark.parametrize(
    ("kind", "is_near"), [(StageKind.ENCODE, False), (StageKind.DIFFUSE, True)]
)
def test_what_a_worker_leaves_lies_near_if_it_is_a_latent(
    device: Callable[[str], Device],
    tmp_path: Path,
    kind: StageKind,
    is_near: bool,  # noqa: FBT001 - a parameter of pytest's
) -> None:
    maker, taker = device("a"), device("b")
    stages: dict[StageKey, Any] = {StageKey(MODEL, kind): Making()}
    orders: Any = NoOrders()
    runner = TaskRunner(stages, maker.transport, CPU, Groups(tmp_path, CPU), orders)
    task = StageTask(
        id=TaskId("t"), request=a_request(), node=NODE, stage=StageKey(MODEL, kind), image_index=0,
        inputs=(), sequence=0, attempt=1, ready_s=0.0,
    )  # fmt: skip
    ending = runner.run(RunStage((task,), launch=1))
    assert isinstance(ending, LaunchDone)
    ref = ending.reports[0].output
    assert ref is not None
    assert torch.equal(taker.transport.get(ref)["made"], torch.ones(4))
    assert bool(taker.opened) is is_near


def test_room_is_free_again_when_the_controller_has_released_the_hand_off(
    device: Callable[[str], Device],
) -> None:
    maker, taker = device("a"), device("b")
    for number in range(5):
        ref = maker.put(f"t{number}", latents=torch.full((900,), float(number)))
        only_in_window(maker, number + 0.5)
        assert taker.transport.get(ref)["latents"][0] == number + 0.5
        Path(ref.path).unlink()


def test_nothing_is_lost_with_the_process_that_made_it(device: Callable[[str], Device]) -> None:
    maker, taker = device("a"), device("b")
    first, second = (maker.put(f"t{i}", latents=torch.full((4,), float(i))) for i in range(2))
    assert torch.equal(taker.transport.get(first)["latents"], torch.zeros(4))
    maker.die()
    for ref, value in ((first, 0.0), (second, 1.0)):
        assert torch.equal(taker.transport.get(ref)["latents"], torch.full((4,), value))
    windows = taker.transport._windows
    assert windows is not None
    assert windows._opened.keys() == {str(taker.window.path)}  # the dead one's memory is let go


def test_a_device_that_cannot_be_reached_is_asked_once(device: Callable[[str], Device]) -> None:
    maker, taker = device("a"), device("b")
    taker.reachable = False
    for number in range(2):
        ref = maker.put(f"t{number}", latents=torch.ones(4))
        assert torch.equal(taker.transport.get(ref)["latents"], torch.ones(4))
    assert len(taker.opened) == 1


def test_a_copy_of_a_hand_off_has_no_claim_to_the_window(
    device: Callable[[str], Device], tmp_path: Path
) -> None:
    maker, taker = device("a"), device("b")
    ref = maker.put("t", latents=torch.ones(4))
    copied = tmp_path / "handoff" / "restored.safetensors"
    copied.write_bytes(Path(ref.path).read_bytes())
    Path(ref.path).unlink()
    only_in_window(maker, 5.0)  # somebody else's by now
    found = taker.transport.get(HandoffRef(NODE, str(copied), ref.size_bytes))
    assert torch.equal(found["latents"], torch.ones(4))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(work=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 700)), max_size=30))
def test_whatever_comes_and_goes_every_reader_finds_what_was_put(
    tmp_path_factory: pytest.TempPathFactory, work: list[tuple[int, int]]
) -> None:
    """A pair is a hand-off to release if it is there, else one to make of so many numbers."""
    folder = tmp_path_factory.mktemp("node")
    maker, taker = Device(folder, "a"), Device(folder, "b")
    alive: dict[int, tuple[HandoffRef, Tensor]] = {}
    for name, length in work:
        if name in alive:
            Path(alive.pop(name)[0].path).unlink()
            continue
        tensor = torch.randn(length)
        alive[name] = maker.put(f"{name}", latents=tensor), tensor
        maker.window.check_integrity()
        for ref, expected in alive.values():
            assert torch.equal(taker.transport.get(ref)["latents"], expected)
