"""Random DAGs, run in random order with random failures, keep their invariants."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.graph import Edge, GraphRun, StageGraph, StageNode
from engine.types import HandoffRef, NodeId, StageKey, StageKind
from tests.support.builders import MODEL

KEY = StageKey(MODEL, StageKind.DIFFUSE)


@st.composite
def graphs(draw: st.DrawFn) -> StageGraph:
    size = draw(st.integers(1, 12))
    names = [NodeId(f"n{i}") for i in range(size)]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    return StageGraph([StageNode(name, KEY) for name in names], [Edge(a, b) for a, b in chosen])


@given(graphs(), st.randoms(use_true_random=False))
def test_any_order_of_execution_and_failure_finishes_and_frees_every_hand_off(
    graph: StageGraph, random: object
) -> None:
    run, alive, failures = GraphRun(graph), set(), 0
    running: list[NodeId] = []
    while not run.is_done:
        ready = [node.id for node in run.ready()]
        if ready and (not running or random.random() < 0.5):
            running.append(random.choice(ready))
            run.start(running[-1])
        else:
            node = running.pop(random.randrange(len(running)))
            if failures < 5 and random.random() < 0.3:
                failures += 1
                run.retry(node)
            else:
                ref = HandoffRef(node, f"{node}", 1)
                alive.add(ref)
                alive -= set(run.complete(node, ref))
        run.check_integrity()
        assert set(run.outputs.values()) == alive
    assert alive == set()


@given(graphs(), st.data())
def test_the_critical_path_lies_between_the_longest_node_and_the_sum(
    graph: StageGraph, data: st.DataObject
) -> None:
    seconds = {n: data.draw(st.floats(0, 100), label=n) for n in graph.nodes}
    path = graph.critical_path(lambda node: seconds[node.id])
    assert max(seconds.values()) <= path <= sum(seconds.values()) + 1e-9


@given(graphs(), st.randoms(use_true_random=False), st.data())
def test_a_run_goes_on_from_any_outputs_that_were_kept(
    graph: StageGraph, random: object, data: st.DataObject
) -> None:
    kept = data.draw(st.sets(st.sampled_from(graph.order)))
    done = graph.resumable(kept)
    needed = {n for n in done if any(child not in done for child in graph.children[n])}
    assert needed <= kept
    assert all(parent in done for node in done for parent in graph.parents[node])
    assert {node for node in kept if set(graph.parents[node]) <= done} <= done
    run = GraphRun(graph)
    run.restore(done, {node: HandoffRef(node, node, 1) for node in needed})
    alive = set(run.outputs.values())
    while not run.is_done:
        node = random.choice([node.id for node in run.ready()])
        run.start(node)
        assert node not in done
        ref = HandoffRef(node, node, 1)
        alive.add(ref)
        alive -= set(run.complete(node, ref))
        run.check_integrity()
    assert alive == set()
