"""The judge of clips: what is to be seen, where it goes, and whether it goes there evenly.

Every frame is looked at by the judge of the stills. Looks must be right in most frames. Then the
course is held against the asked movement: a straight line per coordinate for most of them, falls
and rises for bouncing, an even turn for turning. It was validated on drawn clips, on their
reconstructions and on clips that are wrong on purpose (tests/models/test_motion_watching.py).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.training.checker import judge_seen
from models.training.motion.courses import bounces, goes_straight, track_of, turns
from models.training.motion.movements import BOUNCING, HEADINGS, TURNING
from models.training.motion.turning import turned_shape_name
from models.training.seeing import see

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.training.motion.courses import Course
    from models.training.motion.movements import ClipWish
    from models.training.seeing import Seen

Clip: TypeAlias = NDArray[np.uint8]  # (F, H, W, 3)

MOST_FRAMES_SHARE = 0.75
"""Looks must be right in this share of the frames: 7 of 9."""


@dataclass(frozen=True, slots=True)
class ClipVerdict:
    """Point by point; each is a plain yes or no, since every caption states all of them."""

    present: bool
    colour: bool
    shape: bool
    background: bool
    direction: bool
    smooth: bool

    @property
    def is_right(self) -> bool:
        """Everything the caption states is in the clip."""
        return all(getattr(self, point) for point in POINTS)


POINTS = tuple(field.name for field in fields(ClipVerdict))


def judge_clip(clip: Clip, wish: ClipWish) -> ClipVerdict:
    """Hold a uint8 RGB clip against the wish behind its caption."""
    frames = [see(frame) for frame in clip]
    size_px = (clip[0].shape[1], clip[0].shape[0])
    verdicts = [judge_seen(seen, wish.look, size_px) for seen in frames]
    course = _course(frames, wish)
    return ClipVerdict(
        present=_mostly([verdict.present for verdict in verdicts]),
        colour=_mostly([verdict.colour for verdict in verdicts]),
        shape=_mostly(
            [_is_turned(seen, wish.kind.shape) for seen in frames]
            if wish.movement == TURNING
            else [verdict.shape for verdict in verdicts]
        ),
        background=_mostly([verdict.background for verdict in verdicts]),
        direction=_mostly(list(~np.isnan(track_of(frames)[:, 0]))) and course.is_asked,
        smooth=course.is_smooth,
    )


def _course(frames: Sequence[Seen], wish: ClipWish) -> Course:
    if wish.movement == TURNING:
        return turns(frames, wish.kind.shape)
    if wish.movement == BOUNCING:
        return bounces(frames)
    return goes_straight(frames, HEADINGS[wish.movement])


def _is_turned(seen: Seen, shape: str) -> bool:
    """Whether there is one object of this shape, at whatever angle."""
    return len(seen.things) == 1 and turned_shape_name(seen.things[0].mask) == shape


def _mostly(answers: Sequence[bool]) -> bool:
    return sum(answers) >= MOST_FRAMES_SHARE * len(answers)
