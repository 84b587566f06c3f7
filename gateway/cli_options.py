"""Options that the simulating commands share, and the kinds of values that they take."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from gateway.refusal import RefusalError
from gateway.settings import SOLVERS
from gateway.sizes import parse_size
from gateway.switches import parse_switch
from schedulers.policies import SwitchValue
from schedulers.sim.config import NodeFailure
from schedulers.sim.workloads import WORKLOADS

PATH: Final = click.Path(path_type=Path)
_F = TypeVar("_F", bound=Callable[..., Any])


class Number(click.FloatRange):
    """A finite number inside a range."""

    name = "number"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Refuse infinity and what is no number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return float(number)


class Switch(click.ParamType[Any]):
    """`NAME=on`, `NAME=off`, `NAME=NUMBER`, or `weights=TENANT:WEIGHT,...`."""

    name = "switch"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, SwitchValue]:
        """Return name and value."""
        try:
            return parse_switch(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Failure(click.ParamType[Any]):
    """`NODE@SECONDS`, or `NODE:GPU@SECONDS` with `of_gpus`."""

    name = "failure"

    def __init__(self, *, of_gpus: bool = False) -> None:
        """Take failures of nodes, or of single GPUs."""
        self._of_gpus = of_gpus

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> NodeFailure:
        """Return what fails and when."""
        if isinstance(value, NodeFailure):
            return value
        place, _, at = str(value).partition("@")
        node, colon, gpu = place.partition(":")
        try:
            failure = NodeFailure(int(node), float(at), int(gpu) if colon else None)
        except ValueError:
            failure = NodeFailure(-1, -1.0)
        numbers = (failure.node, failure.gpu or 0)
        right = min(numbers) >= 0 and 0 <= failure.at_s < math.inf
        if not right or bool(colon) != self._of_gpus:
            wanted = (
                "NODE:GPU@SECONDS, such as 3:7@600"
                if self._of_gpus
                else "NODE@SECONDS, such as 3@600"
            )
            self.fail(f"{value!r} is not {wanted}.", param, ctx)
        return failure


class BytesType(click.ParamType[int]):
    """`24GiB`, `512MiB`."""

    name = "bytes"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the bytes."""
        try:
            return value if isinstance(value, int) else parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


ABOVE_0: Final = Number(min=0, min_open=True)
switch_option: Final = click.option(
    "--switch",
    "switches",
    type=Switch(),
    multiple=True,
    metavar="NAME=on|off|NUMBER",
    help="An addition of the policy; repeatable (docs/dispatcher.md lists them).",
)
_SHARED: Final = (
    click.option("--trace", type=PATH, metavar="FILE", help="CSV of requests to replay."),
    click.option("--workload", "name", type=click.Choice(tuple(WORKLOADS)), help="Or make them."),
    click.option("--profile", default="l20", show_default=True, help="l20, h100 or a file."),
    click.option(
        "--model", "models", multiple=True, required=True, help="What is served; repeatable."
    ),
    click.option(
        "--slo-scale",
        type=ABOVE_0,
        default=2.5,
        show_default=True,
        help="Deadlines, in best unloaded latencies.",
    ),
    click.option(
        "--rate-scale", type=ABOVE_0, default=1.0, show_default=True, help="Times the rate."
    ),
    click.option(
        "--steps", type=click.IntRange(1, 100_000), help="Denoise steps of every request."
    ),
    click.option("--duration", "duration_s", type=ABOVE_0, help="Seconds of a workload."),
    click.option(
        "--seed", type=int, default=0, show_default=True, help="Of the workload and the noise."
    ),
    click.option(
        "--noise", type=Number(0, 1, max_open=True), default=0.0, help="0.2 is 20 % either way."
    ),
    click.option("--stragglers", type=Number(0, 1), default=0.0, help="Share of slow runs."),
    click.option(
        "--solver",
        "--dispatcher",
        "dispatcher",
        type=click.Choice(SOLVERS),
        help="If the policy has both.",
    ),
    switch_option,
    click.option(
        "--degrade", is_flag=True, help="Admit what would be late with fewer steps, where allowed."
    ),
    click.option(
        "--min-steps-share",
        type=Number(0, 1, min_open=True),
        metavar="X",
        help="What --degrade must leave of the steps of requests that do not say.",
    ),
    click.option("--json", "json_path", type=PATH, metavar="OUT", help="Write figures here."),
)


def shared(command: _F) -> _F:
    """Give a command all shared options."""
    for option in reversed(_SHARED):
        command = option(command)
    return command


def need_places(*paths: Path | None) -> None:
    """Refuse before the work what could not be written after it."""
    wanted = [path for path in paths if path is not None]
    if len(set(wanted)) < len(wanted):
        raise RefusalError("Two outputs have one path; name different files.")
    for path in wanted:
        folder = path.absolute().parent
        target = path if path.exists() else folder
        if path.is_dir() or not folder.is_dir() or not os.access(target, os.W_OK):
            raise RefusalError(f"Cannot write {path}; name a file in a folder that exists.")
