"""Stage graphs: the DAG of a request's stages, and how far one run of it has come.

`StageGraph` is immutable and validated at construction; `GraphRun` is the mutable progress of one
request over it. Both are pure: they know neither devices nor time nor tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from enum import Enum, auto
from graphlib import CycleError, TopologicalSorter

import msgspec

from engine.errors import GraphError
from engine.types import HandoffRef, NodeId, Purpose, StageKey


class StageNode(msgspec.Struct, frozen=True):
    """One stage execution; `image_index` is the output it works for (0 for shared nodes)."""

    id: NodeId
    stage: StageKey
    image_index: int = 0
    purpose: Purpose = Purpose.MAIN


class Edge(msgspec.Struct, frozen=True):
    """Tensors of `source` that `target` needs."""

    source: NodeId
    target: NodeId


class StageGraph:
    """A validated DAG of stage nodes.

    Raises `GraphError` for duplicate nodes, dangling or self edges, cycles, or no nodes at all.
    """

    def __init__(self, nodes: Iterable[StageNode], edges: Iterable[Edge]) -> None:
        """Index nodes and edges and fix one topological order."""
        self.nodes: dict[NodeId, StageNode] = {}
        for node in nodes:
            if node.id in self.nodes:
                message = f"Stage node {node.id!r} appears twice; node ids must be unique."
                raise GraphError(message)
            self.nodes[node.id] = node
        self.edges = tuple(edges)
        self.parents: dict[NodeId, tuple[NodeId, ...]] = dict.fromkeys(self.nodes, ())
        self.children: dict[NodeId, tuple[NodeId, ...]] = dict.fromkeys(self.nodes, ())
        for edge in self.edges:
            self._link(edge)
        self.order = self._topological_order()

    def _link(self, edge: Edge) -> None:
        for end in (edge.source, edge.target):
            if end not in self.nodes:
                message = f"Edge {edge.source!r} -> {edge.target!r} names unknown node {end!r}."
                raise GraphError(message)
        if edge.source in self.parents[edge.target]:
            message = f"Edge {edge.source!r} -> {edge.target!r} appears twice."
            raise GraphError(message)
        self.parents[edge.target] += (edge.source,)
        self.children[edge.source] += (edge.target,)

    def _topological_order(self) -> tuple[NodeId, ...]:
        if not self.nodes:
            message = "A stage graph needs at least one node."
            raise GraphError(message)
        try:
            return tuple(TopologicalSorter(self.parents).static_order())
        except CycleError as error:
            message = f"Stage graph has a cycle: {' -> '.join(error.args[1])}."
            raise GraphError(message) from error

    def resumable(self, kept: Container[NodeId]) -> frozenset[NodeId]:
        """Return the nodes that need not run again if the outputs of `kept` are still there.

        A node counts as done if its output is kept, or if nobody needs it any more; its parents
        must be done as well.
        """
        spare: set[NodeId] = set()
        for node in reversed(self.order):
            children = self.children[node]
            if node in kept or (children and all(child in spare for child in children)):
                spare.add(node)
        done: set[NodeId] = set()
        for node in self.order:
            if node in spare and all(parent in done for parent in self.parents[node]):
                done.add(node)
        if any(
            node not in kept and any(child not in done for child in self.children[node])
            for node in done
        ):  # an output that was thought spare is needed after all
            return self.resumable(frozenset(node for node in done if node in kept))
        return frozenset(done)

    @property
    def sinks(self) -> tuple[NodeId, ...]:
        """Nodes whose output is an artifact, in topological order."""
        return tuple(node for node in self.order if not self.children[node])

    def critical_path(self, duration_s: Callable[[StageNode], float]) -> float:
        """Return the seconds of the longest path, with `duration_s` giving each node's time.

        This is the least latency that any number of devices can reach.
        """
        finish: dict[NodeId, float] = {}
        for node in self.order:
            start = max((finish[parent] for parent in self.parents[node]), default=0.0)
            finish[node] = start + duration_s(self.nodes[node])
        return max(finish.values())


class NodeState(Enum):
    """Where a node stands; a failed attempt returns it to PENDING."""

    PENDING = auto()
    RUNNING = auto()
    DONE = auto()


class GraphRun:
    """Progress of one request over its graph, with the hand-offs that are alive.

    Attributes:
        attempts: executions begun per node.
        outputs: hand-off of every finished node that some child still needs, unless it was lost.
    """

    def __init__(self, graph: StageGraph) -> None:
        """Begin with every node pending."""
        self.graph = graph
        self.states: dict[NodeId, NodeState] = dict.fromkeys(graph.nodes, NodeState.PENDING)
        self.attempts: dict[NodeId, int] = dict.fromkeys(graph.nodes, 0)
        self.outputs: dict[NodeId, HandoffRef] = {}
        self._lost: set[NodeId] = set()  # nodes whose output is no more and may have to be again

    def restore(self, done: Iterable[NodeId], outputs: Mapping[NodeId, HandoffRef]) -> None:
        """Begin with `done` finished; `outputs` are the hand-offs of those that are needed."""
        for node in done:
            self.states[node] = NodeState.DONE
        self.outputs.update(outputs)
        self.check_integrity()

    @property
    def is_done(self) -> bool:
        """Whether every node has finished."""
        return all(state is NodeState.DONE for state in self.states.values())

    def ready(self) -> tuple[StageNode, ...]:
        """Return pending nodes whose parents are all done, in topological order."""
        return tuple(self.graph.nodes[node] for node in self.graph.order if self._is_ready(node))

    def _is_ready(self, node: NodeId) -> bool:
        return self.states[node] is NodeState.PENDING and all(
            self.states[parent] is NodeState.DONE and parent not in self._lost
            for parent in self.graph.parents[node]
        )

    def inputs(self, node: NodeId) -> tuple[HandoffRef, ...]:
        """Return the hand-offs of a node's parents, in the order of the edges."""
        return tuple(self.outputs[parent] for parent in self.graph.parents[node])

    def start(self, node: NodeId) -> None:
        """Mark a ready node as running."""
        if not self._is_ready(node):
            message = f"Node {node!r} cannot start: it is {self.states[node].name} or waits."
            raise GraphError(message)
        self.states[node] = NodeState.RUNNING
        self.attempts[node] += 1

    def retry(self, node: NodeId) -> None:
        """Return a running node to pending after a failed attempt; its inputs are kept."""
        self._expect_running(node)
        self.states[node] = NodeState.PENDING
        self._reopen()

    def lose(self, lost: Container[HandoffRef]) -> tuple[HandoffRef, ...]:
        """Forget outputs that are no more; what made them runs again if it is needed.

        Returns those that were of this run.
        """
        gone = [node for node, ref in self.outputs.items() if ref in lost]
        refs = tuple(self.outputs.pop(node) for node in gone)
        self._lost.update(gone)
        self._reopen()
        return refs

    def _reopen(self) -> None:
        """Return finished nodes to pending whose output is lost although a child waits for it.

        While another child still runs, which has read it, that waits until the child ends. What they
        need in turn may have been freed long ago.
        """
        for node in reversed(self.graph.order) if self._lost else ():
            children = {self.states[child] for child in self.graph.children[node]}
            needed = NodeState.PENDING in children and NodeState.RUNNING not in children
            if needed and node in self._lost and self.states[node] is NodeState.DONE:
                self.states[node] = NodeState.PENDING
                self._lost.update(p for p in self.graph.parents[node] if p not in self.outputs)

    def complete(self, node: NodeId, output: HandoffRef | None) -> tuple[HandoffRef, ...]:
        """Mark a running node as done and return the hand-offs that nobody needs any more."""
        self._expect_running(node)
        self.states[node] = NodeState.DONE
        if output is not None:
            self.outputs[node] = output
        self._lost.discard(node)
        spent = [n for n in (*self.graph.parents[node], node) if self._is_spent(n)]
        refs = tuple(self.outputs.pop(n) for n in spent)
        self._reopen()
        return refs

    def abandon(self) -> tuple[HandoffRef, ...]:
        """Give up: return every hand-off that is still alive, and hold none."""
        alive = tuple(self.outputs.values())
        self.outputs.clear()
        return alive

    def _is_spent(self, node: NodeId) -> bool:
        return node in self.outputs and all(
            self.states[child] is NodeState.DONE for child in self.graph.children[node]
        )

    def _expect_running(self, node: NodeId) -> None:
        if self.states[node] is not NodeState.RUNNING:
            message = f"Node {node!r} is {self.states[node].name}, not RUNNING."
            raise GraphError(message)

    def check_integrity(self) -> None:
        """Raise `GraphError` if a node ran before its parents or a live hand-off is not needed."""
        for node, state in self.states.items():
            waiting = [
                p
                for p in self.graph.parents[node]
                if self.states[p] is not NodeState.DONE
                and (p not in self._lost or state is NodeState.RUNNING)
            ]
            if state is not NodeState.PENDING and waiting:
                message = f"Node {node!r} is {state.name} although {waiting} are not done."
                raise GraphError(message)
        for node in self.outputs:
            if self.states[node] is not NodeState.DONE or self._is_spent(node):
                message = f"Hand-off of node {node!r} is alive but not needed."
                raise GraphError(message)
