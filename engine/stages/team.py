"""The devices that run one launch together, and how tensors are shared out among them.

Members run the same code on the same inputs; what differs is the part of a tensor that each works
on. `Solo` is a team of one and changes nothing, so that code written for a team is bit-equal to
plain code at degree 1. Everything rests on one collective, the exchange of parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Protocol

import torch
from torch import Tensor

Shape = Sequence[int]


class TeamBroke(Exception):  # noqa: N818 - named for the message that it becomes
    """Another member of the team died, failed or left."""


class Team(Protocol):
    """One member's view of its team."""

    @property
    def rank(self) -> int:
        """This member's number; 0 leads: it hears the controller and hands off what was made."""
        ...

    @property
    def size(self) -> int:
        """How many members there are."""
        ...

    def exchange(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """Send `parts[r]` to each member r, and return what each sent here, of `shapes[r]`.

        Raises:
            TeamBroke: a member is gone.
        """
        ...

    def agree(self, code: int) -> int:
        """Return the leader's `code` on every member; raises `TeamBroke` if one is gone."""
        ...


class Solo:
    """A team of one."""

    rank, size = 0, 1

    def exchange(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """Return what was sent."""
        del shapes
        return list(parts)

    def agree(self, code: int) -> int:
        """Agree with oneself."""
        return code


class Crew:
    """Some members of a team that work on something among themselves, all crews at once.

    Every member of the whole team must be in one crew of the same purpose.
    """

    def __init__(self, whole: Team, ranks: Sequence[int]) -> None:
        """Take the ranks in the whole team, in the order of the crew."""
        self._whole, self._ranks = whole, list(ranks)
        self.rank, self.size = self._ranks.index(whole.rank), len(self._ranks)

    def exchange(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """Exchange with the crew, and nothing with the others."""
        nothing = parts[0].new_empty(0)
        sent = [nothing] * self._whole.size
        expected: list[Shape] = [(0,)] * self._whole.size
        for rank, part, shape in zip(self._ranks, parts, shapes, strict=True):
            sent[rank], expected[rank] = part, shape
        received = self._whole.exchange(sent, expected)
        return [received[rank] for rank in self._ranks]

    def agree(self, code: int) -> int:
        """Agree in the whole team."""
        return self._whole.agree(code)


def sizes(total: int, size: int) -> list[int]:
    """Return how `total` items are shared out among `size` members: evenly, the first get more."""
    return [total // size + (rank < total % size) for rank in range(size)]


def share(team: Team, tensor: Tensor, dim: int) -> Tensor:
    """Return this member's part of a tensor that all members have."""
    return tensor if team.size == 1 else tensor.tensor_split(team.size, dim)[team.rank]


def gather(team: Team, part: Tensor, dim: int, total: int) -> Tensor:
    """Return the whole of which every member has its `share`; `total` is its size along `dim`."""
    if team.size == 1:
        return part
    shapes = [resized(part.shape, dim, length) for length in sizes(total, team.size)]
    return torch.cat(team.exchange([part] * team.size, shapes), dim)


def collect(team: Team, part: Tensor, dim: int, total: int) -> Tensor:
    """Return on the leader the whole of which every member has its `share`; elsewhere the part."""
    if team.size == 1:
        return part
    leads, nothing = team.rank == 0, part.new_empty(0)
    parts = [part if rank == 0 else nothing for rank in range(team.size)]
    shapes = [
        resized(part.shape, dim, length) if leads else (0,) for length in sizes(total, team.size)
    ]
    received = team.exchange(parts, shapes)
    return torch.cat(received, dim) if leads else part


def at_most(team: Team, items: int) -> Team:
    """Return the team, or a team of one if there are not enough items for all members."""
    return team if items >= team.size else Solo()


def resized(shape: Shape, dim: int, length: int) -> list[int]:
    """Return a shape with another length along one dimension."""
    changed = list(shape)
    changed[dim] = length
    return changed


def packed(parts: Sequence[Tensor]) -> Tensor:
    """Return parts as one flat tensor, the way they travel."""
    return torch.cat([part.reshape(-1) for part in parts])


def unpacked(flat: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """Return the parts of a flat tensor."""
    pieces = flat.split([prod(shape) for shape in shapes])
    return [piece.view(list(shape)) for piece, shape in zip(pieces, shapes, strict=True)]
