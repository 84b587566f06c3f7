"""A graph some of whose hand-offs are lost: what is needed again runs again, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from engine.graph import Edge, GraphRun, NodeState, StageGraph, StageNode
from engine.types import HandoffRef, ModelId, NodeId, StageKey, StageKind

IMAGES = 3
ENCODE = NodeId("encode")


def a_graph() -> StageGraph:
    """One encode, and a diffuse and a decode for each picture."""

    def node(kind: StageKind, index: int | None = None) -> StageNode:
        name = kind.value if index is None else f"{kind.value}-{index}"
        return StageNode(NodeId(name), StageKey(ModelId("m"), kind), index or 0)

    diffuses = [node(StageKind.DIFFUSE, i) for i in range(IMAGES)]
    decodes = [node(StageKind.DECODE, i) for i in range(IMAGES)]
    edges = [Edge(ENCODE, d.id) for d in diffuses]
    edges += [Edge(a.id, b.id) for a, b in zip(diffuses, decodes, strict=True)]
    return StageGraph([node(StageKind.ENCODE), *diffuses, *decodes], edges)


def do(run: GraphRun, name: str) -> None:
    run.start(NodeId(name))
    end(run, name)


def end(run: GraphRun, name: str) -> None:
    is_last = name.startswith("decode")
    ref = HandoffRef(NodeId(name), f"{name}/{run.attempts[NodeId(name)]}", 1, host="b")
    run.complete(NodeId(name), None if is_last else ref)


def lose(run: GraphRun, name: str) -> None:
    run.lose({run.outputs[NodeId(name)]})
    run.check_integrity()


def ready(run: GraphRun) -> list[str]:
    return [node.id for node in run.ready()]


def test_a_lost_output_that_children_wait_for_is_made_again() -> None:
    run = GraphRun(a_graph())
    do(run, "encode")
    lose(run, "encode")
    assert ready(run) == ["encode"]
    do(run, "encode")
    assert ready(run) == ["diffuse-0", "diffuse-1", "diffuse-2"]


def test_what_a_child_still_reads_is_made_again_only_when_that_has_ended() -> None:
    run = GraphRun(a_graph())
    do(run, "encode")
    run.start(NodeId("diffuse-0"))
    lose(run, "encode")
    assert ready(run) == []
    end(run, "diffuse-0")
    run.check_integrity()
    assert ready(run) == ["encode", "decode-0"]


def test_a_lost_latent_has_its_embeddings_made_again_if_they_were_freed() -> None:
    run = GraphRun(a_graph())
    do(run, "encode")
    for index in range(IMAGES):
        do(run, f"diffuse-{index}")
    assert ENCODE not in run.outputs
    lose(run, "diffuse-1")
    assert ready(run) == ["encode", "decode-0", "decode-2"]
    assert run.states[NodeId("diffuse-1")] is NodeState.PENDING


def test_an_output_that_nobody_waits_for_any_more_is_not_made_again() -> None:
    run = GraphRun(a_graph())
    do(run, "encode")
    for index in range(IMAGES):
        run.start(NodeId(f"diffuse-{index}"))
    lose(run, "encode")
    for index in range(IMAGES):
        end(run, f"diffuse-{index}")
    assert ready(run) == ["decode-0", "decode-1", "decode-2"]


@given(st.data())
def test_whatever_is_lost_when_the_run_ends_and_holds_nothing(data: st.DataObject) -> None:
    run, losses = GraphRun(a_graph()), data.draw(st.integers(0, 6))
    running: list[str] = []
    while not run.is_done:
        doable: list[tuple[Callable[[GraphRun, str], None], str]] = [
            *((_start, name) for name in ready(run)),
            *((end, name) for name in running),
            *((_fail, name) for name in running if losses),
            *((lose, name) for name in run.outputs if losses),
        ]
        assert doable, run.states
        act, name = data.draw(st.sampled_from(doable))
        losses -= act in {lose, _fail}
        if act is _start:
            running.append(name)
        elif act is not lose:
            running.remove(name)
        act(run, name)
        run.check_integrity()
    assert run.outputs == {}


def _start(run: GraphRun, name: str) -> None:
    run.start(NodeId(name))


def _fail(run: GraphRun, name: str) -> None:
    run.retry(NodeId(name))
