"""Say a wish in words, in one of many natural ways, and never say what is not true."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from models.training.vocabulary import COLOUR_WORDS, PLAIN, SHAPE_WORDS, SIZE_WORDS, STYLE_WORDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from models.training.scenes import Kind, Wish

OPENINGS = ("", "", "", "", "a picture of ", "a drawing of ", "an image of ", "a photo of ")
UNSAID_BACKGROUNDS = 0.5
"""How often a plain background goes without saying."""
COMMON_SHARE = 0.7
"""How often the first, most common word of several is taken."""

_PLACE_PHRASES: dict[str, tuple[str, ...]] = {
    "left": ("on the left", "at the left", "on the left side"),
    "right": ("on the right", "at the right", "on the right side"),
    "top": ("at the top", "on top"),
    "bottom": ("at the bottom", "on the bottom"),
    "top left": ("at the top left", "in the top left corner"),
    "top right": ("at the top right", "in the top right corner"),
    "bottom left": ("at the bottom left", "in the bottom left corner"),
    "bottom right": ("at the bottom right", "in the bottom right corner"),
    "centre": ("in the centre", "in the middle", "in the center"),
}
_RELATION_PHRASES: dict[str, tuple[str, ...]] = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below",),
}


def say(wish: Wish, rng: np.random.Generator | None) -> str:
    """A caption for the wish; without a generator the plainest wording, for tables and sheets."""
    if rng is None:
        return _with_an(
            _things(wish, ["a"] * len(wish.kinds), None) + _background(wish, "on", None)
        )
    articles = ["a" if rng.random() < COMMON_SHARE else rng.choice(("the", "")) for _ in wish.kinds]
    ground = "on" if rng.random() < COMMON_SHARE else str(rng.choice((",", "in", "with")))
    opening = str(rng.choice(OPENINGS))
    is_unsaid = rng.random() < UNSAID_BACKGROUNDS and wish.background == plain_background(wish)
    background = "" if is_unsaid else _background(wish, ground, rng)
    return _with_an(opening + _things(wish, articles, rng) + background)


def plain_background(wish: Wish) -> str:
    """What is behind the objects when the caption does not say it: the first free plain colour."""
    taken = {kind.colour for kind in wish.kinds}
    return next(colour for colour in ("white", "black", "gray") if colour not in taken)


def _with_an(caption: str) -> str:
    """Write "an" before a vowel."""
    return re.sub(r"\ba (?=[aeiou])", "an ", caption)


def _things(wish: Wish, articles: Sequence[str], rng: np.random.Generator | None) -> str:
    names = [
        " ".join(filter(None, (article, _size(wish, rng), _name(kind, rng))))
        for article, kind in zip(articles, wish.kinds, strict=True)
    ]
    return _join(names, wish, rng)


def _size(wish: Wish, rng: np.random.Generator | None) -> str:
    return _pick(SIZE_WORDS[wish.size], rng) if wish.size else ""


def _name(kind: Kind, rng: np.random.Generator | None) -> str:
    colour, shape = _pick(COLOUR_WORDS[kind.colour], rng), _pick(SHAPE_WORDS[kind.shape], rng)
    if kind.style == PLAIN:
        return f"{colour} {shape}"
    adjectives = [_pick(STYLE_WORDS[kind.style], rng), colour]
    if rng is not None and rng.random() >= COMMON_SHARE:
        adjectives.reverse()
    return " ".join((*adjectives, shape))


def _join(names: Sequence[str], wish: Wish, rng: np.random.Generator | None) -> str:
    if len(names) == 1:
        place = f" {_pick(_PLACE_PHRASES[wish.place], rng)}" if wish.place else ""
        return names[0] + place
    if wish.relation is None:
        return f" {_pick(('and', 'next to', 'with'), rng)} ".join(names)
    return f" {_pick(_RELATION_PHRASES[wish.relation], rng)} ".join(names)


def _background(wish: Wish, ground: str, rng: np.random.Generator | None) -> str:
    word = _pick(COLOUR_WORDS[wish.background], rng)
    noun = _pick(("background", "background", "backdrop"), rng)
    return f", {word} {noun}" if ground == "," else f" {ground} a {word} {noun}"


def _pick(options: Sequence[str], rng: np.random.Generator | None) -> str:
    """The first option most of the time, or always when there is no generator."""
    if rng is None or rng.random() < COMMON_SHARE:
        return options[0]
    return str(rng.choice(options))
