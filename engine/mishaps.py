"""What has failed in one request so far, and what follows from it for the next attempts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.graph import NodeState, StageGraph, StageNode
from engine.types import DeviceId, NodeId, StageKind, StageTask


class Mishaps:
    """The failures of a request's nodes.

    Of a stage in which the request's workers failed, one task at a time may run until one succeeds:
    a poisonous request must not take many devices down at once.

    Attributes:
        counted: attempts per node that failed alone, since its latent was last saved.
    """

    def __init__(self, graph: StageGraph) -> None:
        """Begin with none."""
        self._graph = graph
        self.counted: dict[NodeId, int] = dict.fromkeys(graph.nodes, 0)
        self._where: dict[NodeId, tuple[DeviceId, ...]] = {}
        self._suspect: set[StageKind] = set()

    def add(self, task: StageTask, devices: Sequence[DeviceId], *, counted: bool) -> None:
        """Note a failed attempt; what failed together with others is not `counted`."""
        self.counted[task.node] += counted
        self._where[task.node] = (*self.where(task.node), *devices)
        self._suspect.add(task.stage.kind)

    def where(self, node: NodeId) -> tuple[DeviceId, ...]:
        """Return the devices of a node's failed attempts, in order."""
        return self._where.get(node, ())

    def has(self, node: NodeId) -> bool:
        """Whether an attempt of a node has failed, counted or not."""
        return node in self._where

    def is_suspect(self, kind: StageKind) -> bool:
        """Whether a stage failed and has not succeeded since."""
        return kind in self._suspect

    def came_further(self, node: NodeId) -> None:
        """Note that a diffuse has come further than ever: it has not failed in a row."""
        self.counted[node] = 0

    def succeeded(self, kind: StageKind) -> None:
        """Note that a task of a stage has ended well."""
        self._suspect.discard(kind)

    def allowed(
        self, ready: Sequence[StageNode], states: Mapping[NodeId, NodeState]
    ) -> tuple[StageNode, ...]:
        """Return which of the nodes that are ready may be tried now."""
        if not self._suspect:
            return tuple(ready)
        return tuple(node for node in ready if self._may_run(node, ready, states))

    def _may_run(
        self, node: StageNode, ready: Sequence[StageNode], states: Mapping[NodeId, NodeState]
    ) -> bool:
        kind, nodes = node.stage.kind, self._graph.nodes
        if kind not in self._suspect:
            return True
        if any(nodes[n].stage.kind is kind for n in states if states[n] is NodeState.RUNNING):
            return False
        return node is next(n for n in ready if n.stage.kind is kind)
