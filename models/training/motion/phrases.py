"""Say a clip in words: one object, its movement, its background, in one of many natural ways."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from models.training.captions import COMMON_SHARE, UNSAID_BACKGROUNDS, plain_background
from models.training.motion.movements import BOUNCING, STILL, TURNING
from models.training.vocabulary import COLOUR_WORDS, SHAPE_WORDS, SIZE_WORDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np

    from models.training.motion.movements import ClipWish

OPENINGS = ("", "", "", "", "a video of ", "a clip of ", "a picture of ", "a drawing of ")
MOVED_TO_THE_END = 0.15
"""How often the movement is said after the background."""

MOVEMENT_PHRASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "left": ("moving left", "moving to the left", "going left"),
        "right": ("moving right", "moving to the right", "going right"),
        "up": ("moving up", "going up"),
        "down": ("moving down", "going down"),
        "growing": ("growing", "getting bigger"),
        "shrinking": ("shrinking", "getting smaller"),
        BOUNCING: ("bouncing", "bouncing up and down"),
        TURNING: ("turning", "rotating", "spinning"),
        STILL: ("",),
    }
)


def motion_words(movements: Iterable[str] = MOVEMENT_PHRASES) -> tuple[str, ...]:
    """Every word of these captions; most are in the vocabulary of the stills already."""
    phrases = [*OPENINGS, *(phrase for name in movements for phrase in MOVEMENT_PHRASES[name])]
    return tuple(sorted(set(" ".join(phrases).split())))


def say_clip(wish: ClipWish, rng: np.random.Generator | None) -> str:
    """A caption for the wish; without a generator the plainest wording, for tables and sheets."""
    movement = _pick(MOVEMENT_PHRASES[wish.movement], rng)
    thing = " ".join(filter(None, (_article(rng), _size(wish, rng), _name(wish, rng))))
    parts = [thing, movement, _background(wish, rng)]
    if rng is not None and rng.random() < MOVED_TO_THE_END:
        parts = [thing, parts[2], movement]
    opening = "" if rng is None else str(rng.choice(OPENINGS))
    caption = opening + " ".join(filter(None, parts)).replace(" ,", ",")
    return re.sub(r"\ba (?=[aeiou])", "an ", caption)


def _article(rng: np.random.Generator | None) -> str:
    return "a" if rng is None or rng.random() < COMMON_SHARE else str(rng.choice(("the", "")))


def _size(wish: ClipWish, rng: np.random.Generator | None) -> str:
    return _pick(SIZE_WORDS[wish.look.size], rng) if wish.look.size else ""


def _name(wish: ClipWish, rng: np.random.Generator | None) -> str:
    kind = wish.kind
    return f"{_pick(COLOUR_WORDS[kind.colour], rng)} {_pick(SHAPE_WORDS[kind.shape], rng)}"


def _background(wish: ClipWish, rng: np.random.Generator | None) -> str:
    colour = wish.look.background
    is_plain = colour == plain_background(wish.look)
    if is_plain and rng is not None and rng.random() < UNSAID_BACKGROUNDS:
        return ""
    word = _pick(COLOUR_WORDS[colour], rng)
    noun = _pick(("background", "backdrop"), rng)
    ground = _pick(("on", ",", "in", "with"), rng)
    return f", {word} {noun}" if ground == "," else f"{ground} a {word} {noun}"


def _pick(options: Sequence[str], rng: np.random.Generator | None) -> str:
    """The first option most of the time, or always when there is no generator."""
    if rng is None or rng.random() < COMMON_SHARE:
        return options[0]
    return str(rng.choice(options))
