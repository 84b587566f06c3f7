"""The judge: does a picture show what its caption asks for?

`see` looks without knowing the caption; here what was seen is held against the wish, point by
point. It was validated on real drawings, on their reconstructions and on pictures that are wrong
on purpose before any denoiser was trained (tests/models/test_checker.py).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from models.training.scenes import MARGIN
from models.training.seeing import see
from models.training.vocabulary import PLACES, RADII, RELATIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.training.scenes import Kind, Wish
    from models.training.seeing import Pixels, Seen, SeenThing

PLACE_SHARE = 0.35
"""An object is "left" if it has used this share of its free room to the left, and so on."""
_LEAST_ROOM = 0.05


@dataclass(frozen=True, slots=True)
class Verdict:
    """Point by point; `None` where the caption states nothing that could be wrong.

    With two objects a point holds only if it holds for both.
    """

    present: bool
    colour: bool
    shape: bool
    background: bool
    style: bool
    size: bool | None = None
    position: bool | None = None

    @property
    def is_right(self) -> bool:
        """Everything the caption states is in the picture."""
        return all(getattr(self, field.name) is not False for field in fields(self))


def judge(picture: Pixels, wish: Wish) -> Verdict:
    """Hold a uint8 RGB picture against the wish behind its caption."""
    return judge_seen(see(picture), wish, (picture.shape[1], picture.shape[0]))


def judge_seen(seen: Seen, wish: Wish, size_px: tuple[int, int]) -> Verdict:
    """Hold what was seen in a picture of (width, height) pixels against the wish."""
    background = seen.background == wish.background
    if len(seen.things) != len(wish.kinds):
        size = None if wish.size is None else False
        position = None if wish.place is None and wish.relation is None else False
        return Verdict(False, False, False, background, False, size, position)  # noqa: FBT003
    things = _match(seen, wish.kinds)
    pairs = list(zip(things, wish.kinds, strict=True))
    return Verdict(
        present=True,
        colour=all(thing.colour == kind.colour for thing, kind in pairs),
        shape=all(thing.shape == kind.shape for thing, kind in pairs),
        background=background,
        style=all(thing.style == kind.style for thing, kind in pairs),
        size=_size_right(things[0], wish),
        position=_position_right(things, wish, *size_px),
    )


def _match(seen: Seen, kinds: Sequence[Kind]) -> tuple[SeenThing, ...]:
    """The order of the seen objects that agrees best with the order in which they were named."""

    def agreement(things: tuple[SeenThing, ...]) -> int:
        return sum(
            2 * (thing.colour == kind.colour) + (thing.shape == kind.shape)
            for thing, kind in zip(things, kinds, strict=True)
        )

    return max(itertools.permutations(seen.things), key=agreement)


def _size_right(thing: SeenThing, wish: Wish) -> bool | None:
    if wish.size is None:
        return None
    nearest = min(RADII, key=lambda size: abs(RADII[size] - thing.radius))
    return nearest == wish.size


def _position_right(
    things: Sequence[SeenThing], wish: Wish, width_px: int, height_px: int
) -> bool | None:
    if wish.place is not None:
        return _place_right(things[0], wish.place, width_px, height_px)
    if wish.relation is not None:
        return _relation_right(things[0], things[1], wish.relation)
    return None


def _place_right(thing: SeenThing, place: str, width_px: int, height_px: int) -> bool:
    """Each axis of the offset, as a share of the free room, points where the word says."""
    shorter = min(width_px, height_px)
    for offset, side_px, sign in zip(
        (thing.x, thing.y), (width_px, height_px), PLACES[place], strict=True
    ):
        room = max(_LEAST_ROOM, MARGIN * side_px / shorter - thing.radius)
        share = offset / room
        if (sign == 0 and abs(share) > PLACE_SHARE) or (sign and sign * share < PLACE_SHARE):
            return False
    return True


def _relation_right(first: SeenThing, second: SeenThing, relation: str) -> bool:
    """The first is on the stated side, and more so along that axis than across it."""
    sign_x, sign_y = RELATIONS[relation]
    right, down = first.x - second.x, first.y - second.y
    along, across = (sign_x * right, down) if sign_x else (sign_y * down, right)
    return along > abs(across)
