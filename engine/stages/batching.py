"""Which jobs of a launch are done together, and how their results are told apart again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from engine.stages.base import Job, StageResult


def alike_together(
    jobs: Sequence[Job],
    likeness: Callable[[Job], Any],
    work: Callable[[Sequence[Job]], list[StageResult]],
) -> list[StageResult]:
    """Do jobs of equal likeness in one go each; return the results in the order of the jobs."""
    groups: dict[Any, list[int]] = {}
    for index, job in enumerate(jobs):
        groups.setdefault(likeness(job), []).append(index)
    results: dict[int, StageResult] = {}
    for members in groups.values():
        done = work([jobs[index] for index in members])
        results.update(zip(members, done, strict=True))
    return [results[index] for index in range(len(jobs))]


def each(tensors: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """Return every batched tensor (count, ...) as one (1, ...) for each of `count` requests."""
    if count == 1:
        return [dict(tensors)]
    return [{name: t[i : i + 1] for name, t in tensors.items()} for i in range(count)]
