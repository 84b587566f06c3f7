"""Stage graphs: what is refused, and how a run of one progresses."""

from __future__ import annotations

import pytest

from engine.errors import GraphError
from engine.graph import Edge, GraphRun, StageGraph, StageNode
from engine.pipelines import build
from engine.types import HandoffRef, NodeId, StageKey, StageKind
from tests.support.builders import MODEL, a_request, a_spec

KEY = StageKey(MODEL, StageKind.ENCODE)


def nodes(*names: str) -> list[StageNode]:
    return [StageNode(NodeId(name), KEY) for name in names]


def edge(source: str, target: str) -> Edge:
    return Edge(NodeId(source), NodeId(target))


def ref(node: str) -> HandoffRef:
    return HandoffRef(NodeId(node), f"path/{node}", 1)


@pytest.mark.parametrize(
    ("names", "edges", "complaint"),
    [
        ([], [], "at least one node"),
        (["a", "a"], [], "twice"),
        (["a"], [edge("a", "b")], "unknown node 'b'"),
        (["a", "b"], [edge("a", "b"), edge("a", "b")], "twice"),
        (["a", "b"], [edge("a", "b"), edge("b", "a")], "cycle"),
        (["a"], [edge("a", "a")], "cycle"),
    ],
)
def test_a_malformed_graph_is_refused_with_the_reason(
    names: list[str], edges: list[Edge], complaint: str
) -> None:
    with pytest.raises(GraphError, match=complaint):
        StageGraph(nodes(*names), edges)


def test_a_request_for_three_outputs_encodes_once_and_decodes_three_times() -> None:
    graph = build(a_spec(), a_request(n=3))
    kinds = [node.stage.kind for node in graph.nodes.values()]
    assert tuple(kinds.count(kind) for kind in StageKind) == (1, 3, 3)
    assert graph.sinks == ("decode-0", "decode-1", "decode-2")


def test_the_critical_path_is_the_longest_chain() -> None:
    graph = StageGraph(nodes("a", "b", "c", "d"), [edge("a", "b"), edge("a", "c"), edge("c", "d")])
    seconds = {"a": 1.0, "b": 9.0, "c": 2.0, "d": 3.0}
    assert graph.critical_path(lambda node: seconds[node.id]) == 10.0


def test_a_node_becomes_ready_when_all_its_parents_are_done() -> None:
    run = GraphRun(StageGraph(nodes("a", "b", "c"), [edge("a", "c"), edge("b", "c")]))
    assert [node.id for node in run.ready()] == ["a", "b"]
    for name in ("a", "b"):
        run.start(NodeId(name))
        run.complete(NodeId(name), ref(name))
    assert [node.id for node in run.ready()] == ["c"]
    assert run.inputs(NodeId("c")) == (ref("a"), ref("b"))


def test_a_hand_off_is_spent_when_its_last_consumer_is_done() -> None:
    run = GraphRun(StageGraph(nodes("a", "b", "c"), [edge("a", "b"), edge("a", "c")]))
    run.start(NodeId("a"))
    assert run.complete(NodeId("a"), ref("a")) == ()
    run.start(NodeId("b"))
    assert run.complete(NodeId("b"), None) == ()
    run.start(NodeId("c"))
    assert run.complete(NodeId("c"), None) == (ref("a"),)
    assert run.is_done


def test_a_failed_attempt_keeps_the_inputs_for_the_next_one() -> None:
    run = GraphRun(StageGraph(nodes("a", "b"), [edge("a", "b")]))
    run.start(NodeId("a"))
    run.complete(NodeId("a"), ref("a"))
    run.start(NodeId("b"))
    run.retry(NodeId("b"))
    assert [node.id for node in run.ready()] == ["b"]
    assert run.inputs(NodeId("b")) == (ref("a"),)
    run.start(NodeId("b"))
    assert run.attempts["b"] == 2


def test_a_node_cannot_start_before_its_parents_or_twice() -> None:
    run = GraphRun(StageGraph(nodes("a", "b"), [edge("a", "b")]))
    with pytest.raises(GraphError, match="cannot start"):
        run.start(NodeId("b"))
    run.start(NodeId("a"))
    with pytest.raises(GraphError, match="cannot start"):
        run.start(NodeId("a"))


def test_abandoning_returns_every_living_hand_off_once() -> None:
    run = GraphRun(StageGraph(nodes("a", "b"), [edge("a", "b")]))
    run.start(NodeId("a"))
    run.complete(NodeId("a"), ref("a"))
    assert run.abandon() == (ref("a"),)
    assert run.abandon() == ()
