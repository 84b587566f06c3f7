"""The judge of clips: what is to be seen, where it goes, and whether it goes there evenly.

Every frame is looked at by the judge of the stills. Looks must be right in most frames; the
course is fitted with a straight line per coordinate, since every clip is of constant speed.
It was validated on drawn clips, on their reconstructions and on clips that are wrong on purpose
(tests/models/test_motion_watching.py).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.training.checker import judge
from models.training.motion.movements import HEADINGS
from models.training.seeing import see

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.training.motion.movements import ClipWish, Heading
    from models.training.seeing import Pixels

Clip: TypeAlias = NDArray[np.uint8]  # (F, H, W, 3)

MOST_FRAMES_SHARE = 0.75
"""Looks must be right in this share of the frames: 7 of 9."""
LEAST_TRAVEL = 0.25
"""Way along the asked axis, from first to last frame, in units of half the shorter side."""
LARGEST_DRIFT = 0.5
"""Most that may happen along any other axis, as a share of the way along the asked one."""
LEAST_GROWTH = 0.18
"""Change of the radius, same unit; drawn clips change by 0.24 at least."""
LARGEST_REST = 0.1
"""How far something that is asked to stay may move."""
LARGEST_WOBBLE = 0.09
"""Largest distance of a frame from the straight course: about 3 pixels of 64."""


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
    verdicts = [judge(frame, wish.look) for frame in clip]
    track = track_of(clip)
    return ClipVerdict(
        present=_mostly([verdict.present for verdict in verdicts]),
        colour=_mostly([verdict.colour for verdict in verdicts]),
        shape=_mostly([verdict.shape for verdict in verdicts]),
        background=_mostly([verdict.background for verdict in verdicts]),
        direction=_mostly(list(~np.isnan(track[:, 0])))
        and heads(_change(track), HEADINGS[wish.movement]),
        smooth=_is_smooth(track),
    )


def track_of(clip: Sequence[Pixels]) -> NDArray[np.float64]:
    """Middle and radius of the one object in every frame, (F, 3).

    NaN where there is not one object, or where what is there has no colour to be known by: noise
    that fills the picture does not count as something that stands still.
    """
    track = np.full((len(clip), 3), np.nan)
    for index, frame in enumerate(clip):
        things = see(frame).things
        if len(things) == 1 and things[0].colour is not None:
            track[index] = things[0].x, things[0].y, things[0].radius
    return track


def heads(change: NDArray[np.float64], heading: Heading) -> bool:
    """Whether a change of (x, y, radius) over the clip is the asked one and nothing else."""
    asked = np.array(heading)
    if not asked.any():
        return bool((np.abs(change) <= LARGEST_REST).all())
    along = float(asked @ change)
    least = LEAST_GROWTH if heading.radius else LEAST_TRAVEL
    others = np.abs(change[asked == 0]).max()
    return along >= least and bool(others <= LARGEST_DRIFT * along)


def _mostly(answers: Sequence[bool]) -> bool:
    return sum(answers) >= MOST_FRAMES_SHARE * len(answers)


def _lines(track: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slope and start, (2, 3), of the straight lines through the frames that were seen."""
    seen = ~np.isnan(track[:, 0])
    return np.polyfit(np.flatnonzero(seen), track[seen], 1)


def _change(track: NDArray[np.float64]) -> NDArray[np.float64]:
    """Change of x, y and radius from the first to the last frame, along the fitted lines."""
    return _lines(track)[0] * (len(track) - 1)


def _is_smooth(track: NDArray[np.float64]) -> bool:
    """The object is in every frame, and never far from a course of constant speed."""
    if np.isnan(track).any():
        return False
    slope, start = _lines(track)
    course = start + np.arange(len(track))[:, None] * slope
    return bool(np.abs(track - course).max() <= LARGEST_WOBBLE)
