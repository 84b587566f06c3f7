"""Teams of threads: the in-memory twin of a worker's communication groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError
from typing import TypeVar

import torch
from torch import Tensor

from engine.stages.team import Shape, Team, TeamBroke

T = TypeVar("T")


class ThreadTeam:
    """One thread's view of its team; every exchange is checked against what was announced."""

    def __init__(self, rank: int, size: int, table: list[Sequence[Tensor]], meet: Barrier) -> None:
        self.rank, self.size = rank, size
        self._table, self._meet = table, meet

    def exchange(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        self._table[self.rank] = parts
        self._wait()
        received = [sent[self.rank].clone() for sent in self._table]
        assert [list(part.shape) for part in received] == [list(shape) for shape in shapes]
        self._wait()
        return received

    def agree(self, code: int) -> int:
        box = torch.tensor([code])
        return int(self.exchange([box] * self.size, [(1,)] * self.size)[0])

    def _wait(self) -> None:
        try:
            self._meet.wait(60)
        except BrokenBarrierError:
            raise TeamBroke("a member failed") from None


def together(size: int, work: Callable[[Team], T]) -> list[T]:
    """Run `work` on every member of a team at once; return the results by rank."""
    table: list[Sequence[Tensor]] = [()] * size
    meet = Barrier(size)

    def member(rank: int) -> T:
        try:
            return work(ThreadTeam(rank, size, table, meet))
        except BaseException:
            meet.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(member, rank) for rank in range(size)]
    errors = [e for f in futures if (e := f.exception()) is not None]
    for error in sorted(errors, key=lambda e: isinstance(e, TeamBroke)):
        raise error
    return [future.result() for future in futures]
