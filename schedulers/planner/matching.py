"""The least-cost way to seat rows on columns that take several rows each.

A transportation problem with unit supplies, solved exactly: a cheap start, then exchanges along
negative cycles between columns until none is left, which is the optimality condition of minimum
cost flow. Columns are few (roles of a node, or kinds of nodes), so the graph stays tiny.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class _Move(msgspec.Struct, frozen=True):
    """The cheapest row to move from one column to another, and what that changes."""

    cost: int
    row: int


def least_cost(costs: Sequence[Sequence[int]], seats: Sequence[int]) -> list[int]:
    """Return a column for each row, column j exactly `seats[j]` times, at the least total cost.

    Ties fall to the first column and the first row, so equal inputs give equal answers.
    """
    if sum(seats) != len(costs):
        message = f"{len(costs)} rows do not fill {sum(seats)} seats."
        raise ValueError(message)
    chosen = _start(costs, seats)
    while cycle := _negative_cycle(_moves(costs, chosen, len(seats))):
        for row, column in cycle:
            chosen[row] = column
    return chosen


def _start(costs: Sequence[Sequence[int]], seats: Sequence[int]) -> list[int]:
    left, chosen = list(seats), []
    for row in costs:
        column = min((j for j, free in enumerate(left) if free), key=lambda j, row=row: (row[j], j))  # type: ignore[misc]
        left[column] -= 1
        chosen.append(column)
    return chosen


def _moves(
    costs: Sequence[Sequence[int]], chosen: Sequence[int], columns: int
) -> dict[tuple[int, int], _Move]:
    best: dict[tuple[int, int], _Move] = {}
    for row, source in enumerate(chosen):
        for target in range(columns):
            change = costs[row][target] - costs[row][source]
            known = best.get((source, target))
            if target != source and (known is None or change < known.cost):
                best[source, target] = _Move(change, row)
    return best


def _negative_cycle(moves: dict[tuple[int, int], _Move]) -> list[tuple[int, int]]:
    """Return (row, new column) along one cycle of negative cost, empty if there is none."""
    nodes = sorted({node for edge in moves for node in edge})
    distance, before = dict.fromkeys(nodes, 0), dict.fromkeys(nodes, -1)
    relaxed = -1  # the last node whose distance fell
    for _ in nodes:
        relaxed = -1
        for (source, target), move in moves.items():
            if distance[source] + move.cost < distance[target]:
                distance[target], before[target] = distance[source] + move.cost, source
                relaxed = target
        if relaxed < 0:
            break
    if relaxed < 0:
        return []
    for _ in nodes:  # surely onto the cycle itself
        relaxed = before[relaxed]
    cycle, node = [], relaxed
    while True:
        cycle.append((moves[before[node], node].row, node))
        node = before[node]
        if node == relaxed:
            return cycle
