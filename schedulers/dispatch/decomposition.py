"""Decomposition: a large cluster is decided in blocks of nodes, each with its share of requests.

Nodes and requests are dealt like cards, so blocks are alike: nodes by how much they have idle,
requests by urgency. A request that a node is held for goes to that node's block. What exceeds a
block's share waits for the next decision, or takes what the programs leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from schedulers.dispatch.board import Node
from schedulers.dispatch.prospects import Prospect
from schedulers.dispatch.round import Round


class Block(NamedTuple):
    """Nodes and requests that are decided together."""

    nodes: list[Node]
    prospects: list[Prospect]


def blocks_of(
    decision: Round, waiting: Sequence[Prospect], *, nodes: int, most: int
) -> list[Block]:
    """Return blocks of at most `nodes` nodes and `most` requests each, the most urgent ones."""
    everywhere = decision.board.layout.nodes
    count = -(-len(everywhere) // nodes)
    if count <= 1:
        return [Block(list(everywhere), list(waiting[:most]))]
    idle = dict.fromkeys(everywhere, 0)
    for device in decision.board.idle.values():
        idle[device.info.node] += 1
    blocks = [Block([], []) for _ in range(count)]
    home: dict[Node, Block] = {}
    for i, node in enumerate(sorted(everywhere, key=lambda n: (-idle[n], n))):
        home[node] = blocks[i % count]
        home[node].nodes.append(node)
    held = {hold.request: home[node] for node, hold in decision.holds.items() if node in home}
    for i, prospect in enumerate(waiting):
        block = held.get(prospect.task.request.id, blocks[i % count])
        if len(block.prospects) < most:
            block.prospects.append(prospect)
    return blocks
