"""Hold the course of an object through a clip against the movements that there are.

A course is where the one object is in every frame, and how large; frames without it are left out of
every fit, but then the course is not smooth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from models.training.motion.movements import BOUNCE_FRAMES, bounce_heights
from models.training.motion.turning import pivot_of, turn_of, unwound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from models.training.motion.movements import Heading
    from models.training.seeing import Seen

    Track = NDArray[np.float64]  # (F, 3): x, y, radius

LEAST_TRAVEL = 0.25
"""Way along the asked axis, from first to last frame, in units of half the shorter side."""
LARGEST_DRIFT = 0.5
"""Most that may happen along any other axis, as a share of the way along the asked one."""
LEAST_GROWTH = 0.18
"""Change of the radius, same unit; drawn clips change by 0.24 at least."""
LEAST_BOUNCE = 0.3
"""Height, same unit; drawn clips have 0.38 at least."""
LARGEST_REST = 0.1
"""How far something that is asked to stay may move."""
LARGEST_WOBBLE = 0.09
"""Largest distance of a frame from the asked course: about 3 pixels of 64."""
LEAST_TURN = 60.0
LARGEST_TURN_WOBBLE = 15.0
"""Degrees."""


class Course(NamedTuple):
    """Whether it is the asked one, and whether it is followed evenly, in every frame."""

    is_asked: bool
    is_smooth: bool


def track_of(frames: Sequence[Seen]) -> Track:
    """Middle and radius of the one object in every frame.

    NaN where there is not one object, or where what is there has no colour to be known by: noise
    that fills the picture does not count as something that stands still.
    """
    track = np.full((len(frames), 3), np.nan)
    for index, seen in enumerate(frames):
        if len(seen.things) == 1 and seen.things[0].colour is not None:
            thing = seen.things[0]
            track[index] = thing.x, thing.y, thing.radius
    return track


def goes_straight(frames: Sequence[Seen], heading: Heading) -> Course:
    """A straight line of constant speed per coordinate, in the asked direction and no other."""
    track = track_of(frames)
    if not _is_known(track):
        return Course(False, False)  # noqa: FBT003
    line = _line(track)
    change = line[-1] - line[0]
    moves_on = _heads(change, heading) and (any(heading) or _rests(track))
    return Course(moves_on, _is_near(track, line))


def bounces(frames: Sequence[Seen]) -> Course:
    """Falls and rises of one height, without drifting away."""
    track = track_of(frames)
    if not _is_known(track):
        return Course(False, False)  # noqa: FBT003
    numbers = np.arange(len(track))
    fits = [_fit(track[:, 1], bounce_heights(numbers + p)) for p in range(BOUNCE_FRAMES)]
    best = min(fits, key=lambda fit: np.nanmax(np.abs(track[:, 1] - fit)))
    height, error = np.ptp(best), np.nanmax(np.abs(track[:, 1] - best))
    drift = np.nanmax(np.ptp(_line(track)[:, [0, 2]], axis=0))
    asked = height >= LEAST_BOUNCE and error <= LARGEST_DRIFT * height
    course = np.stack([_line(track)[:, 0], best, _line(track)[:, 2]], axis=1)
    return Course(bool(asked and drift <= LARGEST_DRIFT * height), _is_near(track, course))


def turns(frames: Sequence[Seen], shape: str) -> Course:
    """An even turn, clockwise or not, in one place."""
    track = track_of(frames)
    if not _is_known(track):
        return Course(False, False)  # noqa: FBT003
    seen = np.flatnonzero(~np.isnan(track[:, 0]))
    outlines = [frames[index].things[0].mask for index in seen]
    degrees = unwound([turn_of(mask, shape).degrees for mask in outlines], shape)
    line = np.polyval(np.polyfit(seen, degrees, 1), seen)
    wobble = np.abs(degrees - line).max()
    pivots = [pivot_of(m, shape, angle) for m, angle in zip(outlines, degrees, strict=True)]
    rests = np.ptp(pivots, axis=0).max() <= 2 * LARGEST_WOBBLE
    asked = abs(line[-1] - line[0]) >= LEAST_TURN and wobble <= 2 * LARGEST_TURN_WOBBLE
    even = len(seen) == len(track) and wobble <= LARGEST_TURN_WOBBLE
    return Course(bool(asked and rests), bool(even))


def _heads(change: NDArray[np.float64], heading: Heading) -> bool:
    """Whether a change of (x, y, radius) over the clip is the asked one and nothing else."""
    asked = np.array(heading)
    if not asked.any():
        return bool((np.abs(change) <= LARGEST_REST).all())
    along = float(asked @ change)
    least = LEAST_GROWTH if heading.radius else LEAST_TRAVEL
    others = np.abs(change[asked == 0]).max()
    return along >= least and bool(others <= LARGEST_DRIFT * along)


def _rests(track: Track) -> bool:
    return bool((np.nanmax(track, axis=0) - np.nanmin(track, axis=0)).max() <= 2 * LARGEST_WOBBLE)


def _is_known(track: Track) -> bool:
    """Enough frames with one object to say anything about its course."""
    return np.count_nonzero(~np.isnan(track[:, 0])) >= 3


def _line(track: Track) -> Track:
    """The straight line, per coordinate, through the frames that were seen; at every frame."""
    seen = ~np.isnan(track[:, 0])
    slope, start = np.polyfit(np.flatnonzero(seen), track[seen], 1)
    return start + np.arange(len(track))[:, None] * slope


def _fit(values: NDArray[np.float64], basis: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values as a constant minus a positive multiple of a basis, by least squares."""
    seen = ~np.isnan(values)
    slope, start = np.polyfit(basis[seen], values[seen], 1)
    return start + min(slope, 0.0) * basis


def _is_near(track: Track, course: Track) -> bool:
    """The object is in every frame, and never far from the course."""
    return bool(np.abs(track - course).max() <= LARGEST_WOBBLE)
