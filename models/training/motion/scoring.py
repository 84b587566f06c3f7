"""Held-out clip captions, and how many of them a set of clips gets right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from models.training.motion.movements import MOVING, held_out_clip_wish, is_movement_held_out
from models.training.motion.phrases import say_clip
from models.training.motion.watching import POINTS, judge_clip
from models.training.scenes import is_pair_held_out
from models.training.scoring import Share

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from models.training.motion.movements import ClipWish
    from models.training.motion.watching import Clip, ClipVerdict


@dataclass(frozen=True, slots=True)
class ClipPrompt:
    """A held-out wish and one way to say it."""

    wish: ClipWish
    text: str


def _is_new_pair(wish: ClipWish) -> bool:
    return is_pair_held_out(wish.kind)


def _is_new_movement(wish: ClipWish) -> bool:
    return is_movement_held_out(wish) and not _is_new_pair(wish)


def _is_new_background(wish: ClipWish) -> bool:
    return not _is_new_pair(wish) and not is_movement_held_out(wish)


SORTS: dict[str, Callable[[ClipWish], bool]] = {
    "colour-shape pair never trained": _is_new_pair,
    "movement of this pair never trained": _is_new_movement,
    "pair on this background never trained": _is_new_background,
}


def held_out_clip_prompts(
    seed: int, count: int, movements: Sequence[str] = MOVING
) -> list[ClipPrompt]:
    """Held-out wishes, the three sorts taking turns; the same seed gives the same captions."""
    rng = np.random.default_rng(seed)
    tests = list(SORTS.values())
    wishes = [
        held_out_clip_wish(rng, tests[index % len(tests)], movements) for index in range(count)
    ]
    return [ClipPrompt(wish, say_clip(wish, rng)) for wish in wishes]


def judge_all(prompts: Sequence[ClipPrompt], clips: Sequence[Clip]) -> list[ClipVerdict]:
    """A verdict for every clip."""
    return [judge_clip(clip, prompt.wish) for clip, prompt in zip(clips, prompts, strict=True)]


def shares_of(verdicts: Sequence[ClipVerdict]) -> dict[str, Share]:
    """The share that is right, point by point, and `all` for everything at once."""
    table = {
        point: Share(sum(getattr(verdict, point) for verdict in verdicts), len(verdicts))
        for point in POINTS
    }
    return table | {"all": Share(sum(verdict.is_right for verdict in verdicts), len(verdicts))}
