"""The closed world of the shapes model: its colours, shapes, sizes and the words for them.

Everything else (drawing, captions, tokenizer, checker) takes its names from here, so a new colour
or shape is added in one place. Radii are fractions of half the shorter side of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

Rgb: TypeAlias = tuple[int, int, int]

COLOURS: Mapping[str, Rgb] = MappingProxyType(
    {
        "red": (220, 35, 35),
        "orange": (255, 140, 10),
        "yellow": (250, 220, 50),
        "green": (35, 155, 60),
        "cyan": (70, 210, 225),
        "blue": (40, 75, 220),
        "purple": (125, 45, 175),
        "pink": (250, 150, 195),
        "brown": (125, 75, 35),
        "white": (250, 250, 250),
        "gray": (135, 135, 135),
        "black": (15, 15, 15),
    }
)

SHAPES: tuple[str, ...] = (
    "circle",
    "square",
    "triangle",
    "diamond",
    "star",
    "heart",
    "cross",
    "ring",
    "moon",
    "arrow",
    "semicircle",
    "bolt",
)

FIRST_SHAPES, LATER_SHAPES = SHAPES[:10], SHAPES[10:]
"""The later ones came when the first had been learned."""

PLAIN = "plain"
STYLES: tuple[str, ...] = (PLAIN, "outlined", "striped")
"""How an object is painted: filled, as a band along its outline, or in two tones in turn."""
HOLLOW_SHAPES = ("ring",)
"""Shapes that are an outline already."""

RADII: Mapping[str, float] = MappingProxyType({"small": 0.38, "medium": 0.56, "large": 0.78})
RADIUS_SPREAD = 0.08
"""A drawn radius is its size's radius times a uniform factor of 1 plus or minus this."""

PAIR_RADII = (0.32, 0.42)
"""Range of the radius of each object in a picture of two."""

SIZE_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "small": ("small", "little", "tiny"),
        "medium": ("medium", "medium-sized"),
        "large": ("large", "big", "huge"),
    }
)

COLOUR_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {name: (name,) for name in COLOURS} | {"gray": ("gray", "grey"), "purple": ("purple", "violet")}
)

SHAPE_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {name: (name,) for name in SHAPES}
    | {
        "circle": ("circle", "disc"),
        "cross": ("cross", "plus"),
        "moon": ("moon", "crescent"),
        "diamond": ("diamond", "rhombus"),
        "semicircle": ("semicircle", "dome"),
        "bolt": ("bolt", "lightning"),
    }
)

STYLE_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"outlined": ("outlined", "hollow"), "striped": ("striped", "stripy")}
)

PLACES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "left": (-1, 0),
        "right": (1, 0),
        "top": (0, -1),
        "bottom": (0, 1),
        "top left": (-1, -1),
        "top right": (1, -1),
        "bottom left": (-1, 1),
        "bottom right": (1, 1),
        "centre": (0, 0),
    }
)
"""Where an object is said to be: signs of its offset from the middle, x to the right, y down."""

RELATIONS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
)
"""Where the first object of two is, seen from the second: signs as in `PLACES`."""

FILLER_WORDS: tuple[str, ...] = (
    *("a", "an", "the", "on", "in", "at", "of", "to", "and", "with", "next", ",", "."),
    *("photo", "picture", "drawing", "image", "background", "backdrop"),
    *("corner", "side", "middle", "center"),
)


LATER_WORDS: tuple[str, ...] = (
    *("semicircle", "dome", "bolt", "lightning"),
    *(word for group in STYLE_WORDS.values() for word in group),
)
"""Learned after all others: they come last in the vocabulary, so that older ids never change."""


def words() -> tuple[str, ...]:
    """Every word a caption can hold: the vocabulary of the tokenizer, in the order of its ids."""
    phrases = [
        *FILLER_WORDS,
        *PLACES,
        *RELATIONS,
        *(word for group in SIZE_WORDS.values() for word in group),
        *(word for group in COLOUR_WORDS.values() for word in group),
        *(word for group in SHAPE_WORDS.values() for word in group),
    ]
    spaced = " ".join(phrases).replace("-", " - ")
    return (*sorted(set(spaced.split()) - set(LATER_WORDS)), *sorted(LATER_WORDS))
