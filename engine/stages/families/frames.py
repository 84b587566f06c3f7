"""How a team shares a guided UNet: the branches of guidance, and the frames of a video.

Both are exact. Branches never meet inside the UNet. Frames meet only in motion modules: there the
members gather all frames, share out the places in the picture instead, and take their frames back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from engine.stages.hooks import Arguments, inputs_changed, output_changed
from engine.stages.team import Crew, Solo, Team, at_most, gather, share

_NUM_FRAMES = 4  # its position where diffusers' mid block passes it without a name


class Crews(NamedTuple):
    """Those who share the branches of the same frames, and those who share a branch's frames."""

    branch: Team
    frames: Team


def branches_and_frames(team: Team, branches: int, frames: int) -> Crews:
    """Return with whom a member works: branches are shared out first, as that costs least.

    Where there is too little for all, some members do the same as others.
    """
    if team.size % branches:
        return Crews(Solo(), at_most(team, frames))
    width = team.size // branches  # members per branch
    branch, place = divmod(team.rank, width)
    across = Crew(team, [other * width + place for other in range(branches)])
    along = Crew(team, [branch * width + other for other in range(width)])
    return Crews(across, at_most(along, frames))


@contextmanager
def frames_shared(unet: nn.Module, crew: Team, frames: int) -> Iterator[None]:
    """Let a motion UNet work on this member's frames only, out of `frames`."""
    with ExitStack() as stack:
        for name, module in unet.named_modules() if crew.size > 1 else ():
            if name.rsplit(".", 2)[-2:-1] == ["motion_modules"]:
                stack.enter_context(_places_shared(module, crew, frames))
        yield


@contextmanager
def _places_shared(module: nn.Module, crew: Team, frames: int) -> Iterator[None]:
    """Let a motion module see all frames, and this member's share of the places."""
    places = 0

    def own_places(tokens: Tensor) -> Tensor:  # (B * h * w, F, C)
        nonlocal places
        places = tokens.shape[0]
        return share(at_most(crew, places), tokens, dim=0)

    def all_places(tokens: Tensor) -> Tensor:
        return gather(at_most(crew, places), tokens, dim=0, total=places)

    def all_frames(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        hidden, *others = args  # (B * own frames, C, h, w)
        named = "num_frames" in kwargs
        own = kwargs["num_frames"] if named else others[_NUM_FRAMES - 1]
        apart = hidden.unflatten(0, (-1, own))
        hidden = gather(crew, apart, dim=1, total=frames).flatten(0, 1)
        if named:
            return (hidden, *others), {**kwargs, "num_frames": frames}
        return (hidden, *others[: _NUM_FRAMES - 1], frames, *others[_NUM_FRAMES:]), kwargs

    def own_frames(hidden: Tensor) -> Tensor:  # (B * F, C, h, w)
        return share(crew, hidden.unflatten(0, (-1, frames)), dim=1).flatten(0, 1)

    with (
        inputs_changed(module, all_frames),
        output_changed(module.get_submodule("proj_in"), own_places),
        output_changed(module.get_submodule("proj_out"), all_places),
        output_changed(module, own_frames),
    ):
        yield
