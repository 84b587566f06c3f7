"""Held-out captions, and how many of them a set of pictures gets right."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from models.training.captions import say
from models.training.checker import Verdict, judge
from models.training.scenes import (
    Mix,
    any_wish,
    is_held_out,
    is_pair_held_out,
)
from models.training.vocabulary import LATER_SHAPES, PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from models.training.scenes import Kind, Wish
    from models.training.seeing import Pixels

POINTS = tuple(field.name for field in fields(Verdict))


@dataclass(frozen=True, slots=True)
class Prompt:
    """A held-out wish and one way to say it."""

    wish: Wish
    text: str


@dataclass(frozen=True, slots=True)
class Share:
    """How many of how many; nothing stated counts as nothing asked."""

    right: int
    asked: int

    def __str__(self) -> str:
        """The share, with its count."""
        return f"{self.right / self.asked:.3f} ({self.right}/{self.asked})" if self.asked else "-"


def held_out_prompts(seed: int, singles: int, pairs: int) -> list[Prompt]:
    """Singles first, half of them held-out pairs of colour and shape, half triples; then pairs."""
    rng = np.random.default_rng(seed)
    tests: tuple[tuple[Callable[[Wish], bool], float, int], ...] = (
        (lambda wish: is_pair_held_out(wish.kinds[0]), 0.0, singles // 2),
        (lambda wish: not is_pair_held_out(wish.kinds[0]), 0.0, singles - singles // 2),
        (is_held_out, 1.0, pairs),
    )
    prompts = []
    for accepts, share, count in tests:
        mix = Mix(pairs=share)
        found = 0
        while found < count:
            wish = any_wish(rng, mix)
            if is_held_out(wish) and accepts(wish):
                prompts.append(Prompt(wish, say(wish, rng)))
                found += 1
    return prompts


def styled_prompts(seed: int, count: int) -> list[Prompt]:
    """Single outlined and striped objects of which something was never trained."""
    return hard_prompts(seed, count, lambda kind: kind.style != PLAIN)


def later_prompts(seed: int, count: int) -> list[Prompt]:
    """Single plain objects of the later shapes."""
    return hard_prompts(
        seed, count, lambda kind: kind.shape in LATER_SHAPES and kind.style == PLAIN
    )


def hard_prompts(seed: int, count: int, accepts: Callable[[Kind], bool]) -> list[Prompt]:
    """Held-out single objects in every style, later shapes among them, of the wanted kind."""
    rng = np.random.default_rng((seed, 1))
    prompts: list[Prompt] = []
    while len(prompts) < count:
        wish = any_wish(rng, Mix(pairs=0.0, styled=0.5))
        if is_held_out(wish) and accepts(wish.kinds[0]):
            prompts.append(Prompt(wish, say(wish, rng)))
    return prompts


def score(prompts: Sequence[Prompt], pictures: Sequence[Pixels]) -> dict[str, Share]:
    """The share that is right, point by point, and `all` for everything at once."""
    verdicts = [judge(p, q.wish) for p, q in zip(pictures, prompts, strict=True)]
    table = {point: _share([getattr(verdict, point) for verdict in verdicts]) for point in POINTS}
    return table | {"all": _share([verdict.is_right for verdict in verdicts])}


def _share(answers: Sequence[bool | None]) -> Share:
    asked = [answer for answer in answers if answer is not None]
    return Share(sum(asked), len(asked))
