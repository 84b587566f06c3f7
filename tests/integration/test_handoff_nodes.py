"""Tensors from node to node over TCP, with leases; and a thousand hand-offs that leave nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from engine.errors import StageFailedError
from engine.handoff import HandoffStore
from engine.handoff_client import HandoffClient
from engine.handoff_server import HandoffServer
from engine.handoff_wire import cut
from engine.stages.transport import FileTransport
from engine.types import HandoffRef, NodeId, TaskId

CPU, TOKEN = torch.device("cpu"), "between-nodes"
TENSORS = {
    "latents": torch.arange(24.0).reshape(2, 3, 4),
    "mask": torch.tensor([True, False]),
    "half": torch.full((5,), 1.5, dtype=torch.bfloat16),
}


class Node:
    """What one machine has: a folder, a store, a transport, and a server for the others."""

    def __init__(self, root: Path, client: HandoffClient) -> None:
        root.mkdir()
        (root / "disk").mkdir()
        self.now_s = 0.0
        self.store = HandoffStore(root / "shm", 4096, root / "disk")
        self.transport = FileTransport(root / "shm", CPU, client)
        self.server = HandoffServer(self.store, TOKEN, lease_s=60.0, now_s=lambda: self.now_s)

    def put(self, task: str) -> HandoffRef:
        ref = self.transport.put(NodeId("diffuse-0"), TaskId(task), TENSORS)
        self.store.adopt(ref)
        return ref


@pytest_asyncio.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[tuple[Node, Node]]:
    client = HandoffClient(TOKEN, patience_s=5.0)
    pair = Node(tmp_path / "a", client), Node(tmp_path / "b", client)
    for node in pair:
        await node.server.start("127.0.0.1")
    yield pair
    for node in pair:
        await node.server.close()
        assert node.store.used_bytes == 0
        assert suffixes(node.store.folder.parent) <= {".bound", ".lock"}


async def test_another_node_gets_the_same_tensors_and_frees_them_when_it_is_done(
    nodes: tuple[Node, Node],
) -> None:
    here, there = nodes
    ref = here.server.lend(here.put("t"))
    got = await asyncio.to_thread(there.transport.get, ref)
    assert got.keys() == TENSORS.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in TENSORS.items())
    await asyncio.to_thread(HandoffClient(TOKEN).release, ref)
    await asyncio.to_thread(HandoffClient(TOKEN).release, ref)
    assert here.store.used_bytes == 0


async def test_only_the_fields_that_are_asked_for_travel(nodes: tuple[Node, Node]) -> None:
    here, there = nodes
    ref = here.server.lend(here.put("t"))
    for fields in (["mask"], ["half", "latents"], []):
        content = await asyncio.to_thread(HandoffClient(TOKEN).fetch, ref, fields)
        needed = sum(TENSORS[name].nbytes for name in fields)
        assert len(content) < needed + 300
        got = await asyncio.to_thread(there.transport.get, ref, fields)
        assert got.keys() == set(fields)
        assert all(torch.equal(got[name], TENSORS[name]) for name in fields)
    with pytest.raises(StageFailedError, match="no field 'other'"):
        await asyncio.to_thread(there.transport.get, ref, ["other"])


async def test_a_lease_that_nobody_renews_frees_the_memory(nodes: tuple[Node, Node]) -> None:
    here, there = nodes
    ref = here.server.lend(here.put("t"))
    here.now_s = 50.0
    await asyncio.to_thread(there.transport.get, ref)  # begins the lease anew
    here.now_s = 100.0
    assert here.server.expire() == 0
    here.now_s = 111.0
    assert here.server.expire() == 1
    assert here.store.used_bytes == 0
    with pytest.raises(StageFailedError, match="lease is over") as error:
        await asyncio.to_thread(there.transport.get, ref)
    assert not error.value.retryable


async def test_strangers_get_nothing_and_only_what_is_lent_is_served(
    nodes: tuple[Node, Node],
) -> None:
    here, _there = nodes
    ref = here.server.lend(here.put("t"))
    private = HandoffRef(ref.node, here.put("private").path, 1, ref.host)
    escape = HandoffRef(ref.node, "../../etc/passwd", 1, ref.host)
    for client, wanted in (
        (HandoffClient("guess"), ref),
        (HandoffClient(TOKEN), private),
        (HandoffClient(TOKEN), escape),
    ):
        with pytest.raises(StageFailedError, match="refused"):
            await asyncio.to_thread(client.fetch, wanted)
    here.store.release(HandoffRef(private.node, private.path, 1))


async def test_a_node_that_does_not_answer_fails_the_stage_in_time_and_for_another_try(
    nodes: tuple[Node, Node],
) -> None:
    here, _there = nodes
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        silent = HandoffRef(NodeId("n"), "x.safetensors", 1, address)
        with pytest.raises(StageFailedError, match="did not hand over") as error:
            await asyncio.to_thread(HandoffClient(TOKEN, patience_s=0.2).fetch, silent)
    assert error.value.retryable
    with pytest.raises(StageFailedError, match="did not hand over"):
        await asyncio.to_thread(HandoffClient(TOKEN, patience_s=0.2).fetch, silent)
    del here


async def test_rubbish_is_dropped_and_the_server_lives_on(nodes: tuple[Node, Node]) -> None:
    here, there = nodes
    ref = here.server.lend(here.put("t"))
    host, _, port = ref.host.rpartition(":")
    for rubbish in (b"\xff\xff\xff\xff", b"\x00\x00\x00\x03abc", b"\x00"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(rubbish)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
    assert (await asyncio.to_thread(there.transport.get, ref)).keys() == TENSORS.keys()


def suffixes(folder: Path) -> set[str]:
    return {path.suffix for path in folder.rglob("*") if path.is_file()}


def test_within_a_process_the_tensors_themselves_are_handed_on_once(tmp_path: Path) -> None:
    folder = tmp_path / "shm"
    folder.mkdir()
    transport = FileTransport(folder, CPU)
    ref = transport.put(NodeId("n"), TaskId("t"), TENSORS)
    Path(ref.path).rename(tmp_path / "aside")
    assert transport.get(ref)["latents"].data_ptr() == TENSORS["latents"].data_ptr()
    (tmp_path / "aside").rename(ref.path)
    again = transport.get(ref)
    assert torch.equal(again["latents"], TENSORS["latents"])
    assert {tensor.data_ptr() % 64 for tensor in again.values()} == {0}
    assert cut(Path(ref.path), None).size_bytes == ref.size_bytes


async def test_a_thousand_hand_offs_leave_no_file_and_no_byte_booked(
    nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    here, there = nodes
    alive: list[HandoffRef] = []
    for number in range(1000):
        alive.append(here.put(f"t{number}"))
        if number % 100 == 0:
            there.transport.get(alive[-1])
        if len(alive) == 20:
            for ref in alive:
                here.store.release(ref)
            alive.clear()
    here.store.check_integrity()
    assert here.store.used_bytes == 0
    assert suffixes(tmp_path) <= {".bound", ".lock"}
